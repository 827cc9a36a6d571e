"""Pages of a document: text that flows from top to bottom, and places for plots. Sizes are in points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

WIDTH, HEIGHT = 595.0, 842.0  # A4
MARGIN = 50.0
INK, PALE = "#1a1a1a", "#767676"


class Pages:
    """Fills page after page."""

    def __init__(self, footer: str) -> None:
        self.figures: list[Figure] = []
        self._footer = footer
        self._y = 0.0
        self.turn()

    def turn(self) -> None:
        """Begins a new page."""
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        self.figures.append(figure)
        self._y = HEIGHT - MARGIN
        number = str(len(self.figures))
        figure.text(MARGIN / WIDTH, 26 / HEIGHT, self._footer, fontsize=7, color=PALE)
        figure.text(1 - MARGIN / WIDTH, 26 / HEIGHT, number, fontsize=7, color=PALE, ha="right")

    def need(self, height: float) -> None:
        """Turns the page when less than so much is left."""
        if self._y - height < MARGIN:
            self.turn()

    def space(self, height: float) -> None:
        """Leaves some blank."""
        self._y -= height

    def paragraph(self, text: str, size: float = 9, *, bold: bool = False, color: str = INK, after: float = 4) -> None:
        """Text that is broken at the margin."""
        for line in _broken(text, size, bold=bold):
            self.need(size * 1.35)
            self._y -= size * 1.35
            self._write(MARGIN, line, size, bold=bold, color=color)
        self._y -= after

    def row(
        self,
        texts: Sequence[str],
        edges: Sequence[float],
        size: float = 8,
        *,
        bold: bool = False,
        colors: Sequence[str] = (),
        rule: bool = False,
    ) -> None:
        """A line of a table: the first column begins at its edge, the others end at theirs (shares of the width)."""
        self.need(size * 1.9)
        self._y -= size * 1.7
        inside = WIDTH - 2 * MARGIN
        for place, (text, edge) in enumerate(zip(texts, edges, strict=True)):
            color = colors[place] if colors else INK
            self._write(MARGIN + edge * inside, text, size, bold=bold, color=color, align="right" if place else "left")
        if rule:
            height = (self._y - size * 0.45) / HEIGHT
            ends = [MARGIN / WIDTH, 1 - MARGIN / WIDTH]
            self.figures[-1].add_artist(Line2D(ends, [height, height], color=PALE, linewidth=0.5))

    def plot(self, height: float, left: float = 0.0, right: float = 1.0, *, last: bool = True) -> Any:
        """Axes of so much height, between two shares of the width; several stand beside each other until the last."""
        self.need(height)
        inside = WIDTH - 2 * MARGIN
        bottom, top = self._y - height + 30, self._y - 18
        axes = self.figures[-1].add_axes(
            (
                (MARGIN + left * inside + 34) / WIDTH,
                bottom / HEIGHT,
                ((right - left) * inside - 40) / WIDTH,
                (top - bottom) / HEIGHT,
            )
        )
        axes.tick_params(labelsize=7, colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if last:
            self._y -= height
        return axes

    def _write(
        self, x: float, text: str, size: float, *, bold: bool = False, color: str = INK, align: str = "left"
    ) -> None:
        self.figures[-1].text(
            x / WIDTH,
            self._y / HEIGHT,
            text.replace("$", r"\$"),
            fontsize=size,
            color=color,
            ha=align,
            weight="bold" if bold else "normal",
        )


def _broken(text: str, size: float, *, bold: bool) -> list[str]:
    """Lines that fit between the margins, broken between words, or within one that is longer than a line."""
    most = WIDTH - 2 * MARGIN
    lines, line, used = [], "", 0.0
    for word in text.split():
        width = sum(_width(letter, size, bold) for letter in word)
        blank = _width(" ", size, bold) if line else 0.0
        if used + blank + width <= most:
            line, used = f"{line} {word}" if line else word, used + blank + width
            continue
        if line:
            lines.append(line)
        line, used = "", 0.0
        for letter in word:
            if used + _width(letter, size, bold) > most:
                lines.append(line)
                line, used = "", 0.0
            line, used = line + letter, used + _width(letter, size, bold)
    return [*lines, line]


@lru_cache(maxsize=4096)
def _width(letter: str, size: float, bold: bool) -> float:
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(f"{letter}{letter}", font, False)
    return float(width) / 2

"""What goes to the terminal: JSON, tables, errors."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from meshkit.errors import AimeshError


def console() -> Console:
    """Standard output. Tables are as wide as the terminal, or 120 columns in a pipe."""
    return _console(sys.stdout)


def progress_console() -> Console:
    """Standard error, for progress, so that standard output stays clean for pipes."""
    return _console(sys.stderr)


class _Plain(Console):
    """Shows control characters instead of sending them: an escape sequence in a changelog or in an agent's message
    would be an order to the terminal of whoever reads it."""

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich does; here as well, so that widths are those of what is shown."""
        return super().render_str(shown(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, with each control character but line ends as U+FFFD."""
        for segment in super().render(renderable, options):
            yield (
                segment if segment.control or segment.text.isprintable() else segment._replace(text=shown(segment.text))
            )


def shown(text: str) -> str:
    """The text with its control characters as U+FFFD; line ends and tabs stay."""
    return "".join("\ufffd" if unicodedata.category(one) == "Cc" and one not in "\n\t" else one for one in text)


def _console(file: Any) -> Console:
    wide = None if file.isatty() else 120
    # No markup: names, answers and errors are other people's text, and "[/x]" in it is no tag.
    return _Plain(file=file, width=wide, highlight=False, soft_wrap=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def report_error(error: AimeshError, *, as_json: bool) -> int:
    """Prints the error (JSON on standard output, or one line and its hint on standard error); gives its exit code."""
    if as_json:
        print_json({"error": {"reason": error.reason, "message": error.message, "hint": error.hint}})
        return error.exit_code
    line = Text.assemble(("error: ", "bold red"), error.message)
    if error.hint:
        line.append(f"\n  {error.hint}", style="dim")
    progress_console().print(line, soft_wrap=True)
    return error.exit_code


def human_bytes(count: float) -> str:
    """A size for people, in binary units: 1536 → '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

"""A curve drawn with Braille letters: each is two points wide and four high. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of U+2800's dots: left and right column, from the top (Unicode 16, section 21.1)."""
Point = tuple[float, float]


def draw(points: Sequence[Point], width: int, height: int) -> list[str]:
    """Lines of `width` letters, the top first, of (x, y) points by rising x. What is not finite is left out.

    The curve fills the picture: `extent` says between which values. Empty lines without a point.
    """
    canvas = [[0] * width for _ in range(height)]
    columns, rows = width * 2, height * 4
    low, high = extent(points)
    spread = high / 2 - low / 2  # halves: the difference itself may be too large for a number
    last: int | None = None
    for column, value in _columns(points, columns):
        row = round((high / 2 - value / 2) / spread * (rows - 1)) if spread else rows // 2
        for each in _span(last, row):
            canvas[each // 4][column // 2] |= _DOTS[column % 2][each % 4]
        last = row
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in line).rstrip() for line in canvas]


def extent(points: Sequence[Point]) -> Point:
    """The lowest and the highest finite y; (0, 0) without any."""
    values = [y for _, y in points if math.isfinite(y)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _columns(points: Sequence[Point], columns: int) -> list[tuple[int, float]]:
    """A value for each column between the first and the last point: on the line between the two beside it."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return []
    (first, _), (last, _) = finite[0], finite[-1]
    if last <= first:
        return [(0, finite[-1][1])]
    found, place = [], 0
    for column in range(columns):
        x = first + (last - first) * column / (columns - 1)
        while place + 2 < len(finite) and finite[place + 1][0] < x:
            place += 1
        found.append((column, _between(finite[place], finite[place + 1], x)))
    return found


def _between(left: Point, right: Point, x: float) -> float:
    if right[0] <= left[0]:
        return right[1]
    share = min(1.0, max(0.0, (x - left[0]) / (right[0] - left[0])))
    return left[1] * (1 - share) + right[1] * share


def _span(last: int | None, row: int) -> range:
    """Rows that join this column's to the one before: the curve has no holes where it is steep."""
    if last is None or last == row:
        return range(row, row + 1)
    return range(row, last) if row < last else range(last + 1, row + 1)

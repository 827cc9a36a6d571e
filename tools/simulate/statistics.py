"""Figures out of measurements. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """How a measurement is spread; in the measurement's own unit. All 0 when there was none."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0
    most: float = 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least this share (0 to 1) of the sorted values does not exceed ("nearest rank").

    Of few values the 0.99 quantile is the greatest, which flatters nobody. Raises ValueError when there are none.
    """
    if not ordered:
        raise ValueError("no values have no quantile")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Iterable[float]) -> Spread:
    """Count, median, 99th percentile and greatest."""
    ordered = sorted(values)
    if not ordered:
        return Spread()
    return Spread(len(ordered), quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1])


def rate(before: float, after: float, seconds: float) -> float:
    """The growth of a counter, a second. 0 when no time passed."""
    return (after - before) / seconds if seconds > 0 else 0.0

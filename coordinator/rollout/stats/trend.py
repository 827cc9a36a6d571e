"""Whether something grows over time: Theil-Sen's slope, Mann-Kendall's test, and a form of it for many looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Points = Sequence[tuple[float, float]]
"""(time, value), times rising."""
_EXACT = 10
"""Values up to which all orders are counted; above, the normal approximation is good (M. Kendall 1975)."""
FIRST_LOOK = 8
_MOST = 500
"""Points that a trend is computed from at most: it takes their square."""


def theil_sen(points: Points) -> float:
    """The median slope between any two points, in value a unit of time; 0 for one point.

    H. Theil 1950, P. K. Sen 1968. Up to 29 % of the points may be anything.
    """
    slopes = _slopes(_thinned(points))
    return float(np.median(slopes)) if slopes.size else 0.0


def mann_kendall(values: Sequence[float]) -> float:
    """The p-value of a rising trend against values in any order (H. Mann 1945; ties as in M. Kendall 1975).

    Exact up to 10 different values. Values that drift by chance, each from the one before, are not in any order: judge
    how much they rose besides.
    """
    count = len(values)
    if count < 2:
        return 1.0
    series = np.asarray(values, dtype=float)
    score = int(np.triu(np.sign(series[None, :] - series[:, None]), 1).sum())
    _, ties = np.unique(series, return_counts=True)
    if count <= _EXACT and ties.max() == 1:
        return _exact(count, score)
    variance = _weight(count) - float(sum(_weight(int(tie)) for tie in ties))
    if variance <= 0:
        return 1.0
    return math.erfc((score - 1) / math.sqrt(2 * variance)) / 2  # less one: the score moves in steps of two


def rising(values: Sequence[float]) -> float:
    """An always-valid p-value of a rising trend in a series that grows while it is looked at.

    Mann-Kendall's test when there are 8, 12, 18, 27 ... values and never between, the k-th look at alpha / (k (k + 1)):
    these sum to alpha. Each leaves the first quarter out, because what has just started grows until it is warm.
    """
    best, look, size = 1.0, 1, FIRST_LOOK
    while size <= len(values):
        part = values[size // 4 : size]
        step = -(-len(part) // _MOST)
        best = min(best, mann_kendall(part[::step]) * look * (look + 1))
        look, size = look + 1, size * 3 // 2
    return min(1.0, best)


def _slopes(points: Points) -> npt.NDArray[np.float64]:
    times, values = np.array(points, dtype=float).reshape(-1, 2).T
    first, second = np.triu_indices(len(times), 1)
    apart = times[second] - times[first]
    rise = values[second] - values[first]
    return np.asarray(rise[apart > 0] / apart[apart > 0])


def _thinned(points: Points) -> Points:
    step = -(-len(points) // _MOST) or 1
    return points[::step]


def _weight(count: int) -> float:
    return count * (count - 1) * (2 * count + 5) / 18


def _exact(count: int, score: int) -> float:
    """P(score or more): orders of `count` values by how many of their pairs rise."""
    orders = _orders(count)
    rising_pairs = (score + count * (count - 1) // 2) // 2
    return sum(orders[rising_pairs:]) / math.factorial(count)


@lru_cache(maxsize=_EXACT)
def _orders(count: int) -> tuple[int, ...]:
    """Mahonian numbers: orders of `count` values with 0, 1, 2 ... rising pairs."""
    if count <= 1:
        return (1,)
    fewer = _orders(count - 1)
    return tuple(
        sum(fewer[pairs - more] for more in range(count) if 0 <= pairs - more < len(fewer))
        for pairs in range(len(fewer) + count - 1)
    )

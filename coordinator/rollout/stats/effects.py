"""How large a difference is, in units that do not depend on how much was measured. Positive: the first is greater."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def cohens_d(first: Sequence[float], second: Sequence[float]) -> float:
    """The means' difference in pooled standard deviations (J. Cohen 1988); 0.2 is small, 0.5 medium, 0.8 large.

    Infinite for different constants, 0 for equal ones. Raises ValueError with less than two of each.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if min(one.size, two.size) < 2:
        raise ValueError("Cohen's d needs two of each")
    difference = float(one.mean() - two.mean())
    freedom = one.size + two.size - 2
    pooled = math.sqrt(((one.size - 1) * one.var(ddof=1) + (two.size - 1) * two.var(ddof=1)) / freedom)
    if pooled == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / pooled


def cliffs_delta(first: Sequence[float], second: Sequence[float]) -> float:
    """P(first > second) - P(first < second), -1 to 1 (N. Cliff 1993); 0.15 is small, 0.33 medium, 0.47 large.

    Raises ValueError when one is empty.
    """
    one, two = np.asarray(first, dtype=float), np.sort(np.asarray(second, dtype=float))
    if not one.size or not two.size:
        raise ValueError("Cliff's delta needs one of each")
    greater = np.searchsorted(two, one, side="left").sum()
    less = two.size * one.size - np.searchsorted(two, one, side="right").sum()
    return float((int(greater) - int(less)) / (one.size * two.size))


def cliffs_delta_histogram(first: Mapping[int, int], second: Mapping[int, int]) -> float:
    """The same from counts by ordered bucket; those in one bucket are equal."""
    n, m = sum(first.values()), sum(second.values())
    if not n or not m:
        raise ValueError("Cliff's delta needs one of each")
    score = below = 0
    for bucket in sorted({*first, *second}):
        there = second.get(bucket, 0)
        score += first.get(bucket, 0) * (below - (m - below - there))
        below += there
    return score / (n * m)

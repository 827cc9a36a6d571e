"""Tests of one look: valid when it was settled beforehand how much is looked at. All one-sided p-values say "greater".

scipy is imported where it is used: it takes a second, and only a leader that judges needs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from coordinator.rollout.stats.sequential import Counts

_FEW = 5
"""Expected counts below it are too few for a normal approximation (W. Cochran 1954)."""
_EXACT = 12
"""Differences up to which all signs are tried."""
_FLIPS = 10_000
_MANY = 1000
"""Differences from which the normal approximation does."""


@dataclass(frozen=True)
class Test:
    """What a test says."""

    __test__ = False  # pytest collects classes of this name

    statistic: float
    p_value: float
    """One-sided: how likely something as large is when the first is not greater."""


def welch(first: Sequence[float], second: Sequence[float], margin: float = 0.0) -> Test:
    """Whether the first's mean is greater by more than the margin, variances unequal (B. L. Welch, Biometrika 1947).

    Two samples without any spread differ surely or not at all. Raises ValueError with less than two of each.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if min(one.size, two.size) < 2:
        raise ValueError("Welch's test needs two of each")
    difference = float(one.mean() - two.mean()) - margin
    parts = float(one.var(ddof=1)) / one.size, float(two.var(ddof=1)) / two.size
    if sum(parts) == 0:
        return Test(math.copysign(math.inf, difference) if difference else 0.0, 0.0 if difference > 0 else 1.0)
    from scipy import special

    statistic = difference / math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (one.size - 1) + parts[1] ** 2 / (two.size - 1))
    return Test(statistic, float(special.stdtr(freedom, -statistic)))


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> Test:
    """Whether the first are rather greater: U, and the normal approximation with ties.

    H. Mann, D. Whitney 1947; ties as in E. Lehmann, "Nonparametrics", 1975. Raises ValueError when one is empty.
    """
    values, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    one = np.bincount(places[: len(first)], minlength=len(values))
    two = np.bincount(places[len(first) :], minlength=len(values))
    return _mann_whitney(one, two)


def mann_whitney_histogram(first: Mapping[int, int], second: Mapping[int, int]) -> Test:
    """The same from counts by ordered bucket: requests in one bucket are ties."""
    buckets = sorted({*first, *second})
    one = np.array([first.get(bucket, 0) for bucket in buckets], dtype=np.int64)
    two = np.array([second.get(bucket, 0) for bucket in buckets], dtype=np.int64)
    return _mann_whitney(one, two)


def _mann_whitney(one: npt.NDArray[np.int64], two: npt.NDArray[np.int64]) -> Test:
    n, m = int(one.sum()), int(two.sum())
    if not n or not m:
        raise ValueError("the Mann-Whitney test needs one of each")
    below = np.cumsum(two) - two
    statistic = float((one * (below + two / 2)).sum())
    ties = (one + two).astype(float)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if variance <= 0:
        return Test(statistic, 1.0)
    z = (statistic - n * m / 2 - 0.5) / math.sqrt(variance)  # less a half: U moves in whole steps
    return Test(statistic, _upper_tail(z))


def two_proportions(first: Counts, second: Counts) -> Test:
    """Whether the first's share is greater: pooled z, or Fisher's exact test where a cell expects fewer than five.

    The statistic is z in both cases. R. A. Fisher 1935; A. Agresti, "Categorical data analysis", sections 3.3 and 3.5.
    """
    n, m = first.total, second.total
    if not n or not m:
        return Test(0.0, 1.0)
    pooled = (first.bad + second.bad) / (n + m)
    if pooled in (0.0, 1.0):
        return Test(0.0, 1.0)
    z = (first.share - second.share) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    if min(n, m) * min(pooled, 1 - pooled) >= _FEW:
        return Test(z, _upper_tail(z))
    return Test(z, fisher(first, second))


def fisher(first: Counts, second: Counts) -> float:
    """Fisher's exact test, one-sided: the chance of so many bad ones or more among the first, all totals given."""
    bad, total = first.bad + second.bad, first.total + second.total
    ways = _log_comb(total, first.total)
    chances = (
        math.exp(_log_comb(bad, each) + _log_comb(total - bad, first.total - each) - ways)
        for each in range(max(first.bad, bad - second.total), min(bad, first.total) + 1)
    )
    return min(1.0, math.fsum(chances))


def sign_flip(differences: Sequence[float], seed: int = 0) -> Test:
    """Whether paired differences are rather positive: how often random signs give a sum as large.

    Up to 1,000 differences: exact when all are of one size, as those of right and wrong answers are (the sign test), or
    when there are 12 at most; otherwise of 10,000 drawn signs and the one that is (Phipson, Smyth 2010). Above, the
    normal approximation. R. A. Fisher 1935. Differences of nothing say nothing and are left out.
    """
    values = np.asarray([each for each in differences if each], dtype=float)
    total = float(values.sum())
    if values.size == 0 or total <= 0:
        return Test(total, 1.0)
    if values.size > _MANY:
        return Test(total, _upper_tail(total / math.sqrt(float((values**2).sum()))))
    sizes = np.abs(values)
    if sizes.min() == sizes.max():
        return Test(total, _sign(int((values > 0).sum()), values.size))
    reached = total - 1e-9 * float(sizes.sum())  # sums in another order differ in their last digits
    if values.size <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=values.size)))
        return Test(total, float((signs @ values >= reached).mean()))
    signs = np.random.default_rng(seed).choice((1.0, -1.0), (_FLIPS, values.size))
    return Test(total, (1 + int((signs @ values >= reached).sum())) / (1 + _FLIPS))


def _sign(positive: int, count: int) -> float:
    ways: int = sum(math.comb(count, each) for each in range(positive, count + 1))
    return ways / int(2**count)


def _log_comb(of: int, count: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)


def _upper_tail(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2

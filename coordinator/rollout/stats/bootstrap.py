"""Intervals by drawing from the sample again: for a mean, a quantile, a difference. Same seed, same interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 2000
_AT_ONCE = 2_000_000
"""Numbers drawn at one time: 16 MB."""

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Of each row of an array."""


def mean_of(rows: Floats) -> Floats:
    """Each row's mean."""
    return np.asarray(rows.mean(axis=1))


def quantile_of(quantile: float) -> Statistic:
    """Each row's quantile, 0 to 1."""
    return lambda rows: np.asarray(np.quantile(rows, quantile, axis=1))


def interval(
    values: Sequence[float], statistic: Statistic = mean_of, level: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """The percentile interval (B. Efron 1979; Efron, Tibshirani 1993, chapter 13). Raises ValueError for no values."""
    drawn = _drawn(values, statistic, draws, np.random.default_rng(seed))
    return _between(drawn, level)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    statistic: Statistic = mean_of,
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """The same of the first's statistic less the second's, two samples that have nothing to do with each other."""
    generator = np.random.default_rng(seed)
    one = _drawn(first, statistic, draws, generator)
    return _between(one - _drawn(second, statistic, draws, generator), level)


def _drawn(values: Sequence[float], statistic: Statistic, draws: int, generator: np.random.Generator) -> Floats:
    sample = np.asarray(values, dtype=float)
    if not sample.size:
        raise ValueError("nothing to draw from")
    step = max(1, _AT_ONCE // sample.size)
    parts = [
        statistic(generator.choice(sample, (min(step, draws - start), sample.size))) for start in range(0, draws, step)
    ]
    return np.concatenate(parts)


def _between(drawn: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""A test of a mean of bounded numbers that may be looked at as often as one likes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from coordinator.rollout.stats.sequential import NEVER, mean

_STAKES = np.geomspace(0.1, 0.99, 6)
"""Bets that are mixed, as shares of the most that may be staked: high ones win fast where values hardly differ."""


def mean_above(values: Sequence[float], bound: float, low: float, high: float) -> float:
    """Against: each value's mean, given those before it, is at most `bound`. Values and bound are in [low, high].

    The logarithm of an e-process: the mean wealth of gamblers who stake each a fixed share on values above the bound,
    and cannot go broke (I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", JRSS-B
    2023, the grid of section 4.5). Raises ValueError when a value is outside.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.size == 0 or not low < bound < high:
        return NEVER
    if numbers.min() < low or numbers.max() > high:
        raise ValueError(f"values must lie in [{low}, {high}]")
    stakes = _STAKES / (bound - low)
    wealth = np.log1p(np.outer(stakes, numbers - bound)).sum(axis=1)
    return mean([float(each) for each in wealth])


def mean_below(values: Sequence[float], bound: float, low: float, high: float) -> float:
    """Against: each value's mean, given those before it, is at least `bound`; as mean_above."""
    return mean_above([-each for each in values], -bound, -high, -low)


def surely(log_e: float, alpha: float) -> bool:
    """Whether an e-process has reached 1/alpha."""
    return log_e >= -math.log(alpha)

"""Several tests at once: p-values that are raised so that their number does not raise false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted in the order given: at most alpha is the chance of any false one at alpha, however they depend.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    count = len(p_values)
    raised = accumulate((min(1.0, (count - rank) * p_values[place]) for rank, place in enumerate(order)), max)
    return _in_place(order, list(raised))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted in the order given: at most alpha of those at alpha are expected to be false, tests independent.

    Y. Benjamini, Y. Hochberg, "Controlling the false discovery rate", JRSS-B 1995.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    count = len(p_values)
    lowered = accumulate((min(1.0, count / (count - rank) * p_values[place]) for rank, place in enumerate(order)), min)
    return _in_place(order, list(lowered))


def _in_place(order: Sequence[int], values: Sequence[float]) -> list[float]:
    result = [0.0] * len(order)
    for place, value in zip(order, values, strict=True):
        result[place] = value
    return result

"""What all comparisons of requests are made with."""

from __future__ import annotations

import math

from aimesh.rollout.v1.rollout_pb2 import Comparison
from coordinator.rollout.margins import OLD_MISSED
from coordinator.rollout.stats import sequential
from coordinator.rollout.stats.sequential import Counts


def comparison(metric: str, before: float | None, now: float | None) -> Comparison:
    """Of values that may not have been measured; nothing speaks for worse yet, nor for no worse."""
    result = Comparison(metric=metric, p_value=1.0, no_worse_p_value=1.0)
    if before is not None and math.isfinite(before):
        result.before = before
    if now is not None and math.isfinite(now):
        result.now = now
    return result


def against_no_worse(before: Counts, now: Counts, share: float | None, *, together: bool) -> float:
    """The logarithm of the evidence against the new version's requests being no likelier to be bad."""
    if together:
        return sequential.side_by_side(now, before, share)
    return sequential.one_after_the_other(now, before)


def less_than(now: Counts, bound: float) -> float:
    """The p-value of the new version's requests being bad with at least the bound, itself sure but for OLD_MISSED."""
    return min(1.0, OLD_MISSED + sequential.p_value(sequential.below(now, min(1.0, bound))))

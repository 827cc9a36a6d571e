"""Compares latencies by how many requests take longer than some time: the same test as for failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aimesh.rollout.v1.rollout_pb2 import Comparison
from coordinator.rollout.evidence import against_no_worse, comparison, less_than
from coordinator.rollout.margins import LATENCIES, LATENCY_MAY_BUCKETS, OLD_MISSED
from coordinator.rollout.stats import sequential
from coordinator.rollout.stats.histogram import Histogram
from coordinator.rollout.window import BUCKETS_AN_OCTAVE, Window

_ENOUGH = 100
"""Requests from before the step whose quantiles say where to look."""
_ABOVE = (0, 4, 8, 12)
"""Buckets above such a quantile that are looked at too: 1.4, 2 and 2.8 times as long. A longer tail shows there."""
_GRID = range(7 * BUCKETS_AN_OCTAVE, 26 * BUCKETS_AN_OCTAVE, BUCKETS_AN_OCTAVE // 2)
"""Where to look without: every half octave from 0.13 ms to 67 s."""


def latencies(
    before: Window, now: Window, frozen: Window | None, share: float | None, *, together: bool
) -> Iterator[Comparison]:
    """The quantiles of each, as far as requests were sampled."""
    old, new = Histogram.of(before.latency), Histogram.of(now.latency)
    earlier = Histogram.of(frozen.latency) if frozen is not None and together else Histogram.of({})
    anywhere: float | None = None
    for metric, quantile in LATENCIES.items():
        result = comparison(
            metric,
            old.quantile_ms(quantile) if old.total else None,
            new.quantile_ms(quantile) if new.total else None,
        )
        result.before_count, result.now_count = old.total, new.total
        if old.total and new.total:
            result.effect = result.now / result.before - 1
            if earlier.total >= _ENOUGH:
                places = [earlier.bucket(quantile) + more for more in _ABOVE]
                result.p_value = _worse(old, new, places, share, together=together)
            else:
                anywhere = _worse(old, new, _GRID, share, together=together) if anywhere is None else anywhere
                result.p_value = anywhere
            result.no_worse_p_value = _no_worse(old, new, quantile)
            result.test = "shares that take longer, sequential" + ("" if together else ", against an earlier time")
        yield result


def _worse(old: Histogram, new: Histogram, buckets: Sequence[int], share: float | None, *, together: bool) -> float:
    """Against: the new version's requests take no longer. The evidence's mean over all places that are looked at.

    None of these may depend on what is compared: that keeps the test exact wherever they are.
    """
    evidence = [against_no_worse(old.above(each), new.above(each), share, together=together) for each in buckets]
    return sequential.p_value(sequential.mean(evidence))


def _no_worse(old: Histogram, new: Histogram, quantile: float) -> float:
    """Against: the quantile is longer than it may be. The old one's is taken at the low end of what it may be."""
    reached = old.surely_reached(quantile, OLD_MISSED)
    if reached is None:
        return 1.0
    return less_than(new.above(reached + LATENCY_MAY_BUCKETS), 1 - quantile)

"""Compares what two versions did: one comparison a metric, with always-valid p-values. Pure.

Windows must begin at a moment that was fixed beforehand, the step's beginning, and only grow from there. `before` is
the old version's in the same time; `frozen` the old version's from before the step.
"""

from __future__ import annotations

from collections.abc import Iterator

from aimesh.rollout.v1.rollout_pb2 import Comparison
from coordinator.rollout.compare_latency import latencies
from coordinator.rollout.compare_quality import qualities
from coordinator.rollout.evidence import against_no_worse, comparison, less_than
from coordinator.rollout.margins import ERROR_RATE, ERROR_RATE_MAY, MEMORY, OLD_MISSED
from coordinator.rollout.stats import sequential, trend
from coordinator.rollout.stats.sequential import Counts
from coordinator.rollout.window import Window

_SETTLED = 400
"""Answers from which a mean time says something: with a spread as large as the mean it is known to a twentieth."""


def compare(
    before: Window,
    now: Window,
    frozen: Window | None = None,
    share: float | None = None,
    *,
    together: bool | None = None,
) -> list[Comparison]:
    """One comparison a metric that was measured of either; those with an empty `test` are shown and not tested.

    `share` is that of the requests which the new version is to get, 0 to 1: differences show sooner with it. While both
    are served, `together`, `frozen` says at which latencies to look. An old version that gets no requests any more is
    stood in for by it. Where it is not said which of the two it is, the requests that were seen decide.
    """
    if together is None:
        together = bool(before.requests or before.gateway_requests) or frozen is None
    base = before if together or frozen is None else frozen
    found = [
        *_errors(base, now, share, together=together),
        *latencies(base, now, frozen, share, together=together),
        *_plain(base, now),
        *_memory(base, now),
        *qualities(base.quality or (frozen.quality if frozen else {}), now.quality),
    ]
    return [each for each in found if each.HasField("before") or each.HasField("now")]


def _errors(before: Window, now: Window, share: float | None, *, together: bool) -> Iterator[Comparison]:
    """As Triton counts them and as gateways do: shown are those that look worse, tested are both."""
    pairs = [
        (Counts(before.failures, before.requests), Counts(now.failures, now.requests)),
        (
            Counts(before.gateway_failures, before.gateway_requests),
            Counts(now.gateway_failures, now.gateway_requests),
        ),
    ]
    measured = [pair for pair in pairs if pair[1].total] or pairs[:1]
    both = [pair for pair in measured if pair[0].total and pair[1].total]
    old, new = max(both or measured, key=lambda pair: pair[1].share - pair[0].share)
    result = comparison(ERROR_RATE, old.share if old.total else None, new.share if new.total else None)
    result.before_count, result.now_count = old.total, new.total
    if both:
        result.effect = new.share - old.share
        evidence = [against_no_worse(then, since, share, together=together) for then, since in both]
        result.p_value = sequential.p_value(sequential.mean(evidence))
        result.no_worse_p_value = max(_margin_p(then, since) for then, since in both)
        result.test = "two proportions, sequential" + ("" if together else ", against an earlier time")
    yield result


def _margin_p(before: Counts, now: Counts) -> float:
    return less_than(now, sequential.surely_above(before, OLD_MISSED) + ERROR_RATE_MAY)


def _plain(before: Window, now: Window) -> Iterator[Comparison]:
    """What is known by its sum or level alone, so that nothing can be said about chance: shown, not tested."""
    yield _shown("throughput_rps", _per(before.requests, before.seconds), _per(now.requests, now.seconds), 0)
    yield _shown("queue_ms", _queue_ms(before), _queue_ms(now), 1)
    yield _shown("gpu_memory_bytes", before.gpu_memory_bytes, now.gpu_memory_bytes, 1)
    yield _shown("tokens_per_s", _tokens_per_s(before), _tokens_per_s(now), -1)
    if _cost(now) is not None:
        yield _shown("cost_per_request", _cost(before), _cost(now), 1)


def _shown(metric: str, before: float | None, now: float | None, worse: int) -> Comparison:
    """`worse` is the sign of a change for the worse, 0 when neither way is: throughput follows the weights."""
    result = comparison(metric, before, now)
    if before and now is not None:
        result.effect = worse * (now / before - 1)
    return result


def _queue_ms(window: Window) -> float | None:
    return _per(window.queue_ns / 1e6, window.requests - window.failures)


def _tokens_per_s(window: Window) -> float | None:
    """As one caller sees it: in the time that its request takes, queue included."""
    return _per(window.responses, window.busy_ns / 1e9) if window.responses else None


def _cost(window: Window) -> float | None:
    """The price of a replica for the time that a request takes in it, in the unit of cost_per_hour.

    What replicas cost while they wait is not in it: that follows the weights and the time of day. A mean is no matter
    of chance only after some hundreds of requests: before, there is none.
    """
    answered = window.requests - window.failures
    if not window.cost or answered < _SETTLED or window.replica_s <= 0:
        return None
    return window.cost / window.replica_s * (window.busy_ns - window.queue_ns) / 1e9 / answered


def _per(amount: float, of: float) -> float | None:
    return amount / of if of > 0 else None


def _memory(before: Window, now: Window) -> Iterator[Comparison]:
    """The level is shown; tested is whether it grows. Effect: by what share of it, at the last half's pace."""
    result = _shown(MEMORY, before.memory_bytes, now.memory_bytes, 1)
    points = now.memory_trend
    if now.memory_bytes and len(points) >= trend.FIRST_LOOK:
        later = points[len(points) // 2 :]
        pace = trend.theil_sen(later)
        result.effect = pace * (points[-1][0] - points[0][0]) / now.memory_bytes
        result.p_value = trend.rising([value for _, value in points])
        result.test = f"leak: {pace / 2**20:+.3g} MiB/s (Theil-Sen), Mann-Kendall at growing lengths"
    yield result

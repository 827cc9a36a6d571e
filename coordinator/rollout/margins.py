"""How much worse matters, and how much worse a version may be: what the statistics are asked about."""

from __future__ import annotations

ERROR_RATE = "error_rate"
MEMORY = "memory_bytes"
LATENCIES = {"latency_p50_ms": 0.50, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
"""The quantile of each."""
WATCHED = (ERROR_RATE, "latency_p50_ms")
"""Metrics of requests that a step passes on only when they are shown to be no worse. The latencies' tails are not
among them: no step of usual length has the requests that it takes to rule out a longer tail. Every metric of quality
is."""

ERROR_RATE_MATTERS = 0.01
"""A version that fails a hundredth of its requests more than the old one is taken back."""
LATENCY_MATTERS = 0.2
"""A quantile a fifth longer."""
GROWTH_MATTERS = 0.1
"""A tenth more memory by the end of the time that was looked at than at its beginning."""
QUALITY_MATTERS = 0.02
"""A mean score lower by this, where 1 is perfect."""

ERROR_RATE_MAY = 0.05
"""A version passes when it is shown that it fails less than a twentieth of its requests more than the old one."""
LATENCY_MAY_BUCKETS = 5
"""A quantile less than 2^(5/8) = 1.54 times as long."""
QUALITY_MAY = 0.05
"""A mean score less than this lower."""

FALSE_ALARM = 0.05
"""The chance of taking back a version that is no worse, where gates say nothing."""
MISS = 0.05
"""The chance of a step to pass with a version that is worse than it may be."""
OLD_MISSED = MISS / 5
"""The part of it that is the old version being thought worse than it is."""
LEAST_REQUESTS = 50
"""Requests of the new version that a step is judged on at least, where gates say nothing."""
STAGES = 4
"""Steps that share the false alarms, where nobody says how many there are: 5, 25, 50, 100."""


def matters(metric: str) -> float:
    """The least effect that a version is taken back for, in the unit of the metric's effect."""
    if metric == ERROR_RATE:
        return ERROR_RATE_MATTERS
    if metric in LATENCIES:
        return LATENCY_MATTERS
    return GROWTH_MATTERS if metric == MEMORY else QUALITY_MATTERS

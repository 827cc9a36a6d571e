"""What one version of a model did over some time: what rollouts are judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BUCKETS_AN_OCTAVE = 8
"""Latency bucket i counts times from 2^(i/8) to 2^((i+1)/8) microseconds, as in membership.proto."""


@dataclass(frozen=True)
class Window:
    """Sums over a version's replicas. Nothing in it is changed in place."""

    seconds: float = 0.0
    """How long it was."""
    requests: int = 0
    """Answered and failed ones, as Triton counts them."""
    failures: int = 0
    """Those that failed."""
    gateway_requests: int = 0
    """Requests that gateways sent to it, as they count them: what callers saw."""
    gateway_failures: int = 0
    """Those that failed for the caller's gateway, unreachable replicas included."""
    busy_ns: int = 0
    """Time in Triton of those that were answered, queue included, summed."""
    queue_ns: int = 0
    """Time in its queue, summed."""
    latency: Mapping[int, int] = field(default_factory=dict)
    """Sampled requests by latency bucket."""
    responses: int = 0
    """Responses of decoupled models: tokens, for a language model."""
    memory_bytes: float | None = None
    """Mean over replicas and time of what its processes have resident; None when it is not known."""
    gpu_memory_bytes: float | None = None
    """The same of GPU memory."""
    memory_trend: Sequence[tuple[float, float]] = ()
    """(second, mean memory of a replica in bytes) over the window: what a leak shows in."""
    cost: float | None = None
    """What its replicas cost in that time, in the unit of the nodes' label cost_per_hour; None without such a label."""
    replica_s: float = 0.0
    """Seconds of replicas that this is the cost of: two replicas for a minute are 120."""
    quality: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Scores of an evaluation, one a question, by metric."""

"""Weights that follow measured latency: slowly, within bounds, and without swinging. Pure.

Each step compares the nodes that serve one version with each other. A node's latency is smoothed (EWMA: Roberts,
"Control Chart Tests Based on Geometric Moving Averages", 1959), and its weight goes a small part of the way to what its
latency deserves. A node that gets less work often answers sooner, so what is measured depends on what was decided:
small steps, a dead band, and a gain under one let such a loop come to rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aimesh.routing.v1 import routing_pb2

EQUAL = 1000
"""The weight of an equal share."""
DEFAULT_LEAST_PERCENT = 25
MOST = 4 * EQUAL
"""No node gets more than this, however fast it is."""
LEAST_REQUESTS = 10
"""A latency counts when it is the mean of so many requests."""
SMOOTHING = 0.3
"""How much of a new measurement goes into the smoothed latency."""
STEP = 0.1
"""A weight changes by at most this share of itself in one step."""
DEAD_BAND = 0.05
"""Differences smaller than this share are left alone."""
_EXPONENT = 0.7
"""Weight = (typical latency / own latency) ^ this: less than in proportion, which damps the loop."""


@dataclass(frozen=True)
class Measurement:
    """What one node did for a version since the last step."""

    requests: int
    """Answered requests."""
    mean_ns: float
    """Their mean time in Triton, queue included; 0 when there were none."""


def adapt(
    previous: Mapping[str, routing_pb2.NodeWeight],
    measured: Mapping[str, Measurement],
    version: str,
    *,
    least_percent: int = 0,
) -> list[routing_pb2.NodeWeight]:
    """The next weights of the nodes of `measured`, by node, each with its reason. `previous` is by node too.

    Every node of the version must be in `measured`, those without a request too; others are forgotten.
    """
    latencies = {node: _smoothed(previous.get(node), each) for node, each in measured.items()}
    typical = _median([each for each in latencies.values() if each])
    least = EQUAL * (least_percent or DEFAULT_LEAST_PERCENT) // 100
    return [
        _next(node, version, previous.get(node), latencies[node], typical, least, measured[node].requests)
        for node in sorted(measured)
    ]


def _smoothed(previous: routing_pb2.NodeWeight | None, measured: Measurement) -> float:
    """Nanoseconds; 0 while nothing is known."""
    held = float(previous.latency.ToNanoseconds()) if previous is not None else 0.0
    if measured.requests < LEAST_REQUESTS:
        return held
    return held + SMOOTHING * (measured.mean_ns - held) if held else measured.mean_ns


def _median(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _next(
    node: str,
    version: str,
    previous: routing_pb2.NodeWeight | None,
    latency: float,
    typical: float,
    least: int,
    requests: int,
) -> routing_pb2.NodeWeight:
    held = previous.weight if previous is not None else EQUAL
    entry = routing_pb2.NodeWeight(version=version, node=node, weight=_bounded(held, least))
    if not latency:
        entry.reason = f"not measured yet ({requests} of {LEAST_REQUESTS} requests)"
        return entry
    entry.latency.FromNanoseconds(round(latency))
    deserved = _bounded(round(EQUAL * (typical / latency) ** _EXPONENT), least)
    if abs(deserved - held) > DEAD_BAND * held:
        most = max(1, round(held * STEP))
        entry.weight = _bounded(held + max(-most, min(most, deserved - held)), least)
    entry.reason = _reason(latency, typical, entry.weight, deserved, least)
    return entry


def _bounded(weight: int, least: int) -> int:
    return max(least, 1, min(MOST, weight))


def _reason(latency: float, typical: float, weight: int, deserved: int, least: int) -> str:
    said = f"{latency / 1e6:.3g} ms a request, {typical / 1e6:.3g} ms is typical"
    if weight == least and deserved <= least:
        return f"{said}; at the least share"
    if abs(weight - deserved) <= DEAD_BAND * weight:
        return said
    return f"{said}; {'rising' if deserved > weight else 'falling'} to {deserved / EQUAL:.2f} of an equal share"

"""How a version's requests are shared among its nodes, with the reason for each share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.policy.adapt import EQUAL
from coordinator.state import State

_GIB = 1024**3


class NodeShare(NamedTuple):
    """A node's weight among those that serve a version, and why it has it."""

    weight: int
    """At least 1."""
    reason: str


def node_shares(
    state: State, deployment: routing_pb2.Deployment, version: str, nodes: Sequence[str]
) -> list[NodeShare]:
    """One entry for each node, in the order given."""
    kind = deployment.policy.balancer.WhichOneof("kind")
    if kind == "by_capacity":
        return _by_capacity([state.known[node] for node in nodes])
    if kind == "latency_adaptive":
        return _as_measured(state, deployment.name, version, nodes)
    return [NodeShare(1, "equal shares")] * len(nodes)


def _by_capacity(nodes: Sequence[membership_pb2.Node]) -> list[NodeShare]:
    gpu_memory = [sum(gpu.memory_bytes for gpu in node.capacity.gpus) for node in nodes]
    if all(gpu_memory):
        reasons = [f"{size / _GIB:.0f} GiB of GPU memory" for size in gpu_memory]
        return _in_proportion([float(size) for size in gpu_memory], reasons)
    cores = [node.capacity.cpu_cores for node in nodes]
    return _in_proportion(cores, [f"{each:g} cores" for each in cores])


def _in_proportion(amounts: Sequence[float], reasons: Sequence[str]) -> list[NodeShare]:
    """Weights whose mean is EQUAL. A node that did not say what it has counts as the least of the others.

    One that says what no machine has (infinity, no number) must not end the compiling for all.
    """
    told = [amount for amount in amounts if 0 < amount < math.inf] or [1.0]
    filled = [amount if 0 < amount < math.inf else min(told) for amount in amounts]
    mean = sum(filled) / len(filled) if filled else 1.0
    weights = [max(1, round(EQUAL * amount / mean)) for amount in filled]
    return [NodeShare(weight, reason) for weight, reason in zip(weights, reasons, strict=True)]


def _as_measured(state: State, name: str, version: str, nodes: Sequence[str]) -> list[NodeShare]:
    held = state.weights.get(name, routing_pb2.NodeWeights())
    known = {entry.node: entry for entry in held.nodes if entry.version == version}
    fresh = NodeShare(EQUAL, "not measured yet: an equal share")
    return [NodeShare(max(1, known[node].weight), known[node].reason) if node in known else fresh for node in nodes]

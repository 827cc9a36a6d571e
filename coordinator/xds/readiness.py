"""Who serves what, and for what nobody serves, why."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, VersionKey, routable

VersionWeight = tuple[str, int]
"""(version, weight)."""

_MOST_NODES_NAMED = 5
_MOST_MESSAGE_CHARS = 300


@dataclass(frozen=True)
class Endpoint:
    """A node's Triton."""

    node: str
    ip: str
    grpc_port: int
    http_port: int


@dataclass(frozen=True)
class Serving:
    """Where requests can go right now."""

    by_version: Mapping[VersionKey, tuple[Endpoint, ...]]
    """Endpoints of each version, by node id: the nodes of `coordinator.state.serving_nodes`."""
    ready: tuple[Endpoint, ...]
    """Every node whose Triton takes requests, by id: these answer calls that name no model."""

    def of(self, name: str, version: str) -> tuple[Endpoint, ...]:
        """Endpoints of one version; empty when none is ready."""
        return self.by_version.get((name, version), ())


def find_serving(state: State) -> Serving:
    """The state's serving nodes as endpoints; those whose address is no IP address are left out."""
    ready = {
        node.id: Endpoint(node.id, ip, node.report.triton.grpc_port, node.report.triton.http_port)
        for node in state.answering.values()
        if (ip := ip_of(node.address))
    }
    by_version = {
        key: tuple(ready[node_id] for node_id in dict.fromkeys(node.id for node in nodes) if node_id in ready)
        for key, nodes in state.serving.items()
    }
    return Serving(by_version, tuple(ready.values()))


@functools.lru_cache(maxsize=16_384)
def ip_of(host: str) -> str:
    """The IP address as it is usually written; empty when it is a name.

    xDS carries addresses only: one name would make clients refuse all the endpoints of a cluster.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def shares(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> list[VersionWeight]:
    """The versions that share the requests: those with a ready replica, which also take the others' share.

    Without any ready replica: all of them, so that a client learns at once that nothing is ready.
    """
    versions = routable(state, deployment)
    return [(version, weight) for version, weight in versions if serving.of(deployment.name, version)] or versions


def is_available(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> bool:
    """Whether any replica takes the deployment's requests."""
    return any(serving.of(deployment.name, version) for version, _ in routable(state, deployment))


def why_unavailable(state: State, deployment: routing_pb2.Deployment) -> str:
    """Why no replica is ready, for people: wanted and ready counts, then what each node says."""
    weighted = [target for target in deployment.targets if target.weight > 0]
    if not weighted:
        return f"model {deployment.name}: none of its versions has a weight; give one with: aimesh deploy"
    return "; ".join(_why_target(state, deployment.name, target) for target in weighted)


def why_out(state: State, key: VersionKey, endpoints: Collection[str]) -> list[tuple[str, str]]:
    """(node, reason) of each node that was given the version and is not among its endpoints, by node."""
    return [
        (node_id, _reason(node_id, state.nodes.get(node_id), key)[1].removeprefix(f"{node_id}: "))
        for node_id, assigned in sorted(state.assignments.items())
        if key in assigned and node_id not in endpoints
    ]


def _why_target(state: State, name: str, target: routing_pb2.Target) -> str:
    reasons = list(_reasons(state, (name, target.version)))
    more = len(reasons) - _MOST_NODES_NAMED
    if more > 0:
        reasons[_MOST_NODES_NAMED:] = [f"and {more} more"]
    if not reasons:
        reasons = ["no node has been given one (aimesh status says which limit failed)"]
    return f"model {name} {target.version}: 0 of {target.replicas} replicas ready; {', '.join(reasons)}"


def _reasons(state: State, key: VersionKey) -> Iterator[str]:
    """One "node: reason" for each node that was given the version; failures first, then by node."""
    found = [
        _reason(node_id, state.nodes.get(node_id), key)
        for node_id, assigned in sorted(state.assignments.items())
        if key in assigned
    ]
    return (text for _, text in sorted(found))


def _reason(node_id: str, node: membership_pb2.Node | None, key: VersionKey) -> tuple[int, str]:
    """(order, text)."""
    if node is None:
        return 1, f"{node_id}: dead"
    if node.state != membership_pb2.NODE_STATE_READY:
        return 1, f"{node_id}: node is {_word(membership_pb2.NodeState.Name(node.state), 'NODE_STATE_')}"
    status = _status(node.report.models, key)
    if status is None:
        return 2, f"{node_id}: not started yet"
    if status.state == membership_pb2.MODEL_STATE_FAILED:
        return 0, f"{node_id}: failed: {_one_line(status.message)}"
    if status.state == membership_pb2.MODEL_STATE_READY:
        return 2, f"{node_id}: address {node.address!r} is not an IP address"
    return 2, f"{node_id}: {_word(membership_pb2.ModelState.Name(status.state), 'MODEL_STATE_')}"


def _status(models: Sequence[membership_pb2.ModelStatus], key: VersionKey) -> membership_pb2.ModelStatus | None:
    return next((model for model in models if (model.name, model.version) == key), None)


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _one_line(text: str) -> str:
    """Printable, on one line, short enough for a status message."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _MOST_MESSAGE_CHARS else f"{line[: _MOST_MESSAGE_CHARS - 3]}..."

"""Which node runs what: a pure function from the state to assignments, with a reason for every replica not placed.

First fit in a stable order: replicas that are placed and still fit stay where they are; a new one goes to a ready node
that holds none of the same name, first to those that hold its blobs, then to the one with the most memory left. A
version that is no longer a target stays until its successors answer, so that a change of version never leaves a name
unserved while there is room for both.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, VersionKey, serving_nodes

GIB = 1024**3


@dataclass(frozen=True)
class Placement:
    """What each node is to run, and why replicas are missing."""

    assignments: Mapping[str, frozenset[VersionKey]]
    """By node id; nodes with nothing to run are not in it."""
    rejections: Mapping[VersionKey, tuple[routing_pb2.Rejection, ...]]
    """By version: one entry for each node that could not take a missing replica."""


@dataclass
class _Node:
    """A node while it is being filled: what is left of it."""

    node: membership_pb2.Node
    memory_left: int
    gpus_left: list[int]
    versions: dict[VersionKey, int | None] = field(default_factory=dict)
    """What it runs, and on which GPU (index in gpus_left), if on any."""

    def serves(self, name: str) -> bool:
        return any(held == name for held, _ in self.versions)


@functools.lru_cache(maxsize=4)
def place(state: State, absent: tuple[str, ...] = ()) -> Placement:
    """Assigns the replicas of every deployment.

    `absent` are ids of members that have no live lease but may be back in a moment: what they have stays theirs (a new
    leader gives everyone one lease's time before it moves anything). The last few answers are kept: a state never
    changes, and the controller and every status ask for the same.
    """
    nodes = {node.id: _empty(node) for node in _present(state, absent)}
    for _, deployment in sorted(state.deployments.items()):
        _keep(state, nodes, deployment)
    rejections: dict[VersionKey, tuple[routing_pb2.Rejection, ...]] = {}
    for name, deployment in sorted(state.deployments.items()):
        for target in deployment.targets:
            rejected = _fill(state, nodes, (name, target.version), target.replicas)
            if rejected:
                rejections[(name, target.version)] = tuple(rejected)
        _retire(state, nodes, deployment)
    return Placement({key: frozenset(node.versions) for key, node in nodes.items() if node.versions}, rejections)


def target_status(
    state: State, placement: Placement, name: str, target: routing_pb2.Target
) -> routing_pb2.TargetStatus:
    """Where a target's replicas are and why the missing ones are missing; failed loads are among the reasons."""
    key = (name, target.version)
    assigned = sorted(node for node, versions in placement.assignments.items() if key in versions)
    failed = [
        routing_pb2.Rejection(node=node, limit="load_failed", message=model.message)
        for node in assigned
        for model in (state.nodes[node].report.models if node in state.nodes else ())
        if (model.name, model.version) == key and model.state == membership_pb2.MODEL_STATE_FAILED
    ]
    return routing_pb2.TargetStatus(
        version=target.version,
        wanted=target.replicas,
        ready=len(serving_nodes(state, name, target.version)),
        nodes=assigned,
        rejections=[*placement.rejections.get(key, ()), *failed],
    )


def _present(state: State, absent: Collection[str]) -> Iterable[membership_pb2.Node]:
    yield from (node for _, node in sorted(state.nodes.items()))
    yield from (state.members[key] for key in sorted(absent) if key in state.members and key not in state.nodes)


def _empty(node: membership_pb2.Node) -> _Node:
    return _Node(node, node.capacity.memory_bytes, [gpu.memory_bytes for gpu in node.capacity.gpus])


def _keep(state: State, nodes: Mapping[str, _Node], deployment: routing_pb2.Deployment) -> None:
    """Gives each node what it has of a name, when that still fits: targets and retiring versions alike.

    Of more replicas than wanted, those that answer stay.
    """
    name = deployment.name
    wanted = {target.version: target.replicas for target in deployment.targets}
    kept = dict.fromkeys(wanted, 0)
    for node in sorted(nodes.values(), key=lambda node: (not _serves_any(state, node, name), node.node.id)):
        held = next((key for key in state.assignments.get(node.node.id, ()) if key[0] == name), None)
        if held is None or held not in state.versions or _limit(state.versions[held], node) is not None:
            continue
        if held[1] in kept:
            if kept[held[1]] == wanted[held[1]] or _unfit(node):
                continue
            kept[held[1]] += 1
        _take(state.versions[held], node, held)


def _fill(state: State, nodes: Mapping[str, _Node], key: VersionKey, replicas: int) -> list[routing_pb2.Rejection]:
    """Adds the replicas that are missing. The reasons of all nodes that took none, when some stay missing."""
    version = state.versions.get(key)
    if version is None:
        return []
    missing = replicas - sum(key in node.versions for node in nodes.values())
    if missing <= 0:
        return []
    blobs = {file.digest for file in version.files}
    for node in sorted(nodes.values(), key=lambda node: _preference(node, blobs)):
        if missing <= 0:
            break
        if _limit(version, node, name=key[0]) is None:
            _take(version, node, key)
            missing -= 1
    missing -= _replace_in_place(state, nodes, key, missing)
    if missing <= 0:
        return []
    return [
        routing_pb2.Rejection(node=node.node.id, limit=limit[0], message=limit[1])
        for node in nodes.values()
        if (limit := _limit(version, node, name=key[0])) is not None
    ]


def _replace_in_place(state: State, nodes: Mapping[str, _Node], key: VersionKey, missing: int) -> int:
    """With no free node left, hands nodes of retiring versions over to their successor. How many it handed over.

    Nodes whose old version does not answer go at once; those that answer go one at a time, the next when all that went
    before answer again.
    """
    name, handed = key[0], 0
    targets = {target.version for target in state.deployments[name].targets}
    waiting = any(key in node.versions and not _serves(state, node, key) for node in nodes.values())
    for node in nodes.values():
        old = next((held for held in node.versions if held[0] == name and held[1] not in targets), None)
        if handed == missing or old is None or _unfit(node) or (waiting and _serves(state, node, old)):
            continue
        _give_back(state.versions[old], node, old)
        fits = _limit(state.versions[key], node, name=name) is None
        _take(state.versions[key if fits else old], node, key if fits else old)
        handed += fits
        waiting = waiting or fits
    return handed


def _retire(state: State, nodes: Mapping[str, _Node], deployment: routing_pb2.Deployment) -> None:
    """Takes retiring versions away once all replicas that every target could be given answer, at least one of each."""
    name = deployment.name
    for target in deployment.targets:
        placed = sum((name, target.version) in node.versions for node in nodes.values())
        if len(serving_nodes(state, name, target.version)) < max(1, placed):
            return
    targets = {target.version for target in deployment.targets}
    for node in nodes.values():
        for held in [key for key in node.versions if key[0] == name and key[1] not in targets]:
            _give_back(state.versions[held], node, held)


def _limit(version: registry_pb2.ModelVersion, node: _Node, name: str = "") -> tuple[str, str] | None:
    """The first limit that keeps the version off the node, with its numbers; None when it fits.

    With a name, the node must also be ready for something new of that name.
    """
    need = version.requirements
    if name and node.node.state != membership_pb2.NODE_STATE_READY:
        return "state", f"node is {membership_pb2.NodeState.Name(node.node.state).removeprefix('NODE_STATE_')}"
    if name and node.serves(name):
        held = next(held for held, _ in node.versions if held == name)
        return "occupied", f"node runs a replica of {held} already"
    for label, value in sorted(need.node_labels.items()):
        if node.node.labels.get(label) != value:
            return "label", f"label {label} is {node.node.labels.get(label, '')!r}, not {value!r}"
    if need.memory_bytes > node.memory_left:
        return "memory", f"needs {need.memory_bytes / GIB:.2f} GiB of memory, {node.memory_left / GIB:.2f} GiB are free"
    if need.gpu_memory_bytes > max(node.gpus_left, default=0):
        most = max(node.gpus_left, default=0)
        return "gpu_memory", (
            f"needs {need.gpu_memory_bytes / GIB:.2f} GiB on one GPU, "
            + (f"the freest of {len(node.gpus_left)} has {most / GIB:.2f} GiB" if node.gpus_left else "there is no GPU")
        )
    return None


def _take(version: registry_pb2.ModelVersion, node: _Node, key: VersionKey) -> None:
    gpu = None
    if version.requirements.gpu_memory_bytes:
        gpu = max(range(len(node.gpus_left)), key=node.gpus_left.__getitem__)
        node.gpus_left[gpu] -= version.requirements.gpu_memory_bytes
    node.memory_left -= version.requirements.memory_bytes
    node.versions[key] = gpu


def _give_back(version: registry_pb2.ModelVersion, node: _Node, key: VersionKey) -> None:
    gpu = node.versions.pop(key)
    if gpu is not None:
        node.gpus_left[gpu] += version.requirements.gpu_memory_bytes
    node.memory_left += version.requirements.memory_bytes


def _preference(node: _Node, blobs: Collection[str]) -> tuple[int, int, str]:
    held = sum(digest in blobs for digest in node.node.report.blobs)
    return -held, -node.memory_left, node.node.id


def _serves(state: State, node: _Node, key: VersionKey) -> bool:
    return any(serving.id == node.node.id for serving in serving_nodes(state, *key))


def _serves_any(state: State, node: _Node, name: str) -> bool:
    return any(key[0] == name and _serves(state, node, key) for key in state.assignments.get(node.node.id, ()))


def _unfit(node: _Node) -> bool:
    """A node that is leaving, or whose Triton dies again and again, keeps nothing: it is placed anew elsewhere."""
    crashing = node.node.report.triton.state == membership_pb2.TRITON_STATE_CRASH_LOOP
    return crashing or node.node.state == membership_pb2.NODE_STATE_DRAINING

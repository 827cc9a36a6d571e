"""What is left of each node while placement fills it, and what keeps a version off a node."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.registry.compatibility import needed, software_limit
from coordinator.state import State, VersionKey
from coordinator.training.reserved import Taken, reservations

GIB = 1024**3
MOST_FAILED_NODES = 3
"""A version that failed to load on so many nodes is at fault itself: its replicas are not moved any more."""


@dataclass
class Slot:
    """A node while it is being filled: what is left of it."""

    node: membership_pb2.Node
    memory_left: int
    gpus_left: list[int]
    closed: tuple[str, str] | None
    """The limit, and the reason, for which it takes nothing new; None when it does."""
    leaving: bool
    """All that it has is on its way out."""
    failed: Mapping[VersionKey, str]
    """Versions that are not tried here, with the reason."""
    hopeless: frozenset[VersionKey]
    """Versions that failed on so many nodes that they are not moved."""
    holds: frozenset[VersionKey] = frozenset()
    """Targets that it was given or still reports: until these are gone, nothing else of their name may come here."""
    versions: dict[VersionKey, int | None] = field(default_factory=dict)
    """What it runs, and on which GPU (index in gpus_left), if on any."""
    measured: Mapping[VersionKey, registry_pb2.Measured] = field(default_factory=dict)
    """What versions took where they were loaded."""
    reserved: Taken = field(default_factory=Taken)
    """What training jobs that are reserved keep of it; no part of what is left."""

    @property
    def id(self) -> str:
        """The node's id."""
        return self.node.id

    @property
    def unfit(self) -> bool:
        """A node that is leaving, or whose Triton dies again and again, keeps nothing: it is placed anew elsewhere."""
        crashing = self.node.report.triton.state == membership_pb2.TRITON_STATE_CRASH_LOOP
        return crashing or self.node.state == membership_pb2.NODE_STATE_DRAINING

    def need(self, version: registry_pb2.ModelVersion) -> tuple[int, int]:
        """Memory and GPU memory of one replica in bytes: as measured, else as estimated."""
        return needed(version, self.measured.get((version.name, version.version)))

    def proves(self, version: registry_pb2.ModelVersion) -> bool:
        """Whether a measured version runs here already, and so fits: that it was measured larger since takes nothing
        away."""
        memory, gpu = self.need(version)
        fits = memory <= self.node.capacity.memory_bytes
        fits = fits and gpu <= max((each.memory_bytes for each in self.node.capacity.gpus), default=0)
        return (
            fits
            and (version.name, version.version) in self.measured
            and any(
                (model.name, model.version) == (version.name, version.version)
                and model.state == membership_pb2.MODEL_STATE_READY
                for model in self.node.report.models
            )
        )

    def gives_up(self, key: VersionKey) -> bool:
        """Whether a replica here is on its way out and so not counted."""
        return self.leaving or (key in self.failed and key not in self.hopeless)

    def settled(self, key: VersionKey) -> bool:
        """Whether it has a replica that counts."""
        return key in self.versions and not self.gives_up(key)

    def preference(self, blobs: Collection[str]) -> tuple[int, int, str]:
        """Lowest first: those that hold most of the blobs, then those with the most memory left."""
        held = sum(digest in blobs for digest in self.node.report.blobs)
        return -held, -self.memory_left, self.id


class Roster:
    """All nodes that have something or may be given something, by id, and who has which name."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.slots = _slots(state)
        self._freest = sorted((-slot.memory_left, node_id) for node_id, slot in self.slots.items())
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        for node_id, slot in self.slots.items():
            for digest in slot.node.report.blobs:
                self._holders[digest].add(node_id)
        self._by_name: defaultdict[str, dict[str, Slot]] = defaultdict(dict)
        self._assigned: defaultdict[str, list[tuple[Slot, VersionKey]]] = defaultdict(list)
        for node_id, held in sorted(state.assignments.items()):
            for key in held if node_id in self.slots else ():
                self._assigned[key[0]].append((self.slots[node_id], key))

    def assigned(self, name: str) -> list[tuple[Slot, VersionKey]]:
        """Who was given a version of a name before, those that answer first, then by id."""
        return sorted(self._assigned[name], key=lambda found: (not self.serves(*found), found[0].id))

    def preferred(self, blobs: Collection[str]) -> Iterator[Slot]:
        """All nodes, those first that a version with these blobs is given to first; see Slot.preference."""
        holders = {node_id for digest in blobs for node_id in self._holders.get(digest, ())}
        yield from sorted((self.slots[node_id] for node_id in holders), key=lambda slot: slot.preference(blobs))
        yield from (self.slots[node_id] for _, node_id in tuple(self._freest) if node_id not in holders)

    def of(self, name: str) -> list[Slot]:
        """Who has a version of a name now, by id."""
        return [slot for _, slot in sorted(self._by_name[name].items())]

    def settled(self, key: VersionKey) -> list[Slot]:
        """Who has a replica that counts, by id."""
        return [slot for slot in self.of(key[0]) if slot.settled(key)]

    def outgoing(self, key: VersionKey) -> list[Slot]:
        """Who has a replica that is on its way out, by id."""
        return [slot for slot in self.of(key[0]) if key in slot.versions and not slot.settled(key)]

    def serves(self, slot: Slot, key: VersionKey) -> bool:
        """Whether the node answers requests for a version."""
        return slot.id in self.state.serving_ids.get(key, ())

    def serving(self, slots: Iterable[Slot], key: VersionKey) -> int:
        """How many of them answer requests for a version."""
        return sum(self.serves(slot, key) for slot in slots)

    def take(self, slot: Slot, key: VersionKey) -> None:
        """Gives a node a version, on its freest GPU when it needs one."""
        (memory, gpu_memory), gpu = slot.need(self.state.versions[key]), None
        if gpu_memory:
            gpu = max(range(len(slot.gpus_left)), key=slot.gpus_left.__getitem__)
            slot.gpus_left[gpu] -= gpu_memory
        self._set_memory_left(slot, slot.memory_left - memory)
        slot.versions[key] = gpu
        self._by_name[key[0]][slot.id] = slot

    def give_back(self, slot: Slot, key: VersionKey) -> None:
        """Takes a version from a node."""
        (memory, gpu_memory), gpu = slot.need(self.state.versions[key]), slot.versions.pop(key)
        if gpu is not None:
            slot.gpus_left[gpu] += gpu_memory
        self._set_memory_left(slot, slot.memory_left + memory)
        if not any(name == key[0] for name, _ in slot.versions):
            del self._by_name[key[0]][slot.id]

    def _set_memory_left(self, slot: Slot, memory_left: int) -> None:
        """Keeps the freest in order: to sort all nodes for each version would be most of the work in a large mesh."""
        del self._freest[bisect.bisect_left(self._freest, (-slot.memory_left, slot.id))]
        slot.memory_left = memory_left
        bisect.insort(self._freest, (-memory_left, slot.id))


def limit(
    version: registry_pb2.ModelVersion, slot: Slot, *, new: bool = False, again: bool = False
) -> tuple[str, str] | None:
    """The first limit that keeps the version off the node, with its numbers; None when it fits.

    As something new, the node must also be open to it and have nothing of its name, and it must not have failed there
    before, unless it is tried `again`.
    """
    need = version.requirements
    if new and slot.closed:
        return slot.closed
    if new and not again and (version.name, version.version) in slot.failed:
        return "load_failed", slot.failed[(version.name, version.version)]
    if new and any(name == version.name for name, _ in slot.versions):
        return "occupied", f"node runs a replica of {version.name} already"
    if new and (held := sorted(v for n, v in slot.holds if n == version.name and v != version.version)):
        return "occupied", f"node has not let go of {version.name} {held[0]} yet"
    for label, value in sorted(need.node_labels.items()):
        if slot.node.labels.get(label) != value:
            return "label", f"label {label} is {slot.node.labels.get(label, '')!r}, not {value!r}"
    if (found := software_limit(version, slot.node)) is not None:
        return found
    memory, gpu_memory = slot.need(version)
    fits = memory <= slot.memory_left and gpu_memory <= max(slot.gpus_left, default=0)
    if fits or (not new and slot.proves(version)):
        return None
    if memory > slot.memory_left:
        free = max(0, slot.memory_left)
        return "memory", f"needs {memory / GIB:.2f} GiB of memory, {free / GIB:.2f} GiB are free"
    most = max(slot.gpus_left, default=0)
    return "gpu_memory", (
        f"needs {gpu_memory / GIB:.2f} GiB on one GPU, "
        + (f"the freest of {len(slot.gpus_left)} has {most / GIB:.2f} GiB" if slot.gpus_left else "there is no GPU")
    )


def _slots(state: State) -> dict[str, Slot]:
    failed = _failures(state)
    hopeless = frozenset(key for key, where in failed.items() if len(where) >= MOST_FAILED_NODES)
    reserved, found = reservations(state.jobs), {}
    for node_id, node in state.known.items():
        dead = node_id not in state.nodes and node.state == membership_pb2.NODE_STATE_DEAD
        if dead and node_id not in state.answering:
            continue
        kept = reserved.get(node_id, Taken())
        found[node_id] = Slot(
            node,
            node.capacity.memory_bytes - kept.memory,
            [gpu.memory_bytes - kept.gpus.get(gpu.index, 0) for gpu in node.capacity.gpus],
            closed=_closed(state, node),
            leaving=dead or node_id in state.drains,
            failed={key: where[node_id] for key, where in failed.items() if node_id in where},
            hopeless=hopeless,
            holds=_held_targets(state, node),
            measured=state.measured,
            reserved=kept,
        )
    return found


def _held_targets(state: State, node: membership_pb2.Node) -> frozenset[VersionKey]:
    """What may still answer here under a name while it is a target: in its place, another would get its requests."""
    reported = ((model.name, model.version) for model in node.report.models)
    held = {*state.assignments.get(node.id, ()), *reported}
    return frozenset((name, version) for name, version in held if version in state.target_weights.get(name, {}))


def _closed(state: State, node: membership_pb2.Node) -> tuple[str, str] | None:
    if node.id not in state.nodes:
        word = "dead" if node.state == membership_pb2.NODE_STATE_DEAD else "silent"
        return "state", f"node is {word}"
    if node.id in state.drains:
        return "drained", f"node is drained (aimesh undrain {node.id})"
    if node.state != membership_pb2.NODE_STATE_READY:
        return "state", f"node is {membership_pb2.NodeState.Name(node.state).removeprefix('NODE_STATE_')}"
    return None


def _failures(state: State) -> dict[VersionKey, dict[str, str]]:
    """By version, the nodes that are not to try it, with the reason. A node that joined anew may try again."""
    found: dict[VersionKey, dict[str, str]] = {}
    for (node_id, name, version), failure in state.failures.items():
        node = state.known.get(node_id)
        if node is not None and node.epoch == failure.epoch:
            found.setdefault((name, version), {})[node_id] = failure.message
    return found

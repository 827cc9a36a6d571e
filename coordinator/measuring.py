"""What versions really take, as the agents measured it while they loaded them: kept by the leader, the largest seen.

Level-triggered: compares what the nodes report with what is kept, and writes what is missing or clearly larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Created, Delete, Etcd, Put, Unchanged
from coordinator.mirror import Mirror
from coordinator.state import State, VersionKey
from meshkit.errors import UnavailableError

log = structlog.get_logger()

PACE_S = 0.5
LARGER = 1.1
"""Only what is larger than this times what is kept is written: every load measures a little different."""
AT_ONCE = 100
"""Keys deleted in one transaction: etcd takes 128 operations at most (--max-txn-ops)."""


def news(state: State, nodes: Iterable[membership_pb2.Node]) -> Mapping[VersionKey, registry_pb2.Measured]:
    """What these nodes report that is to be kept, by version. Without its moment, which is the writer's to say."""
    found: dict[VersionKey, registry_pb2.Measured] = {}
    for node in nodes:
        for model in node.report.models:
            key = (model.name, model.version)
            ready = model.state == membership_pb2.MODEL_STATE_READY
            if ready and model.measured_memory_bytes and key in state.versions:
                found[key] = _larger(found.get(key), model, node)
    return {key: each for key, each in found.items() if _worth_keeping(state.measured.get(key), each)}


def orphans(state: State) -> list[VersionKey]:
    """What is kept of versions that are recorded no more."""
    return sorted(key for key in state.measured if key not in state.versions)


def merged(held: registry_pb2.Measured | None, found: registry_pb2.Measured) -> registry_pb2.Measured:
    """The larger of each; node, moment and time to load are those of what was found."""
    result = registry_pb2.Measured()
    result.CopyFrom(found)
    if held is not None:
        result.memory_bytes = max(held.memory_bytes, found.memory_bytes)
        result.gpu_memory_bytes = max(held.gpu_memory_bytes, found.gpu_memory_bytes)
    return result


@dataclass
class MeasuringController:
    """Runs on every coordinator and acts on the leader."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    _done: State | None = field(default=None, init=False)
    """All of it has been looked at."""

    async def run(self) -> None:
        """Keeps what is new again and again until cancelled."""
        while True:
            await asyncio.sleep(PACE_S)
            state = self.mirror.state
            if not self.election.term or self.mirror.frozen:
                self._done = None
                continue
            if state is self._done:
                continue
            try:
                await self._act(state, self.election.fence())
                self._done = state
            except UnavailableError as error:
                log.warning("measured.not_written", reason=error.message)

    async def _act(self, state: State, fence: Created) -> None:
        for key, found in news(state, self._changed(state)).items():
            await self._keep(key, found, fence)
        gone = orphans(state)
        for start in range(0, len(gone), AT_ONCE):
            part = gone[start : start + AT_ONCE]
            await self.etcd.txn([fence], [Delete(keys.measured(*key)) for key in part])

    def _changed(self, state: State) -> list[membership_pb2.Node]:
        """Nodes that may have something new to say; in a large mesh some node changes all the time."""
        done = self._done
        if done is None or done.versions is not state.versions or done.measured is not state.measured:
            return list(state.nodes.values())
        return [node for node_id, node in state.nodes.items() if done.nodes.get(node_id) is not node]

    async def _keep(self, key: VersionKey, found: registry_pb2.Measured, fence: Created) -> None:
        """In one transaction on what is kept and on the version, which somebody may remove meanwhile."""
        _, (held, version) = await self.etcd.get(keys.measured(*key), keys.version(*key))
        if version.value is None:
            return
        before = keys.parse(held.value, registry_pb2.Measured()) if held.value is not None else None
        found.at.GetCurrentTime()
        guards: list[Created | Unchanged] = [
            fence,
            Unchanged(held.key, held.mod_revision),
            Created(version.key, version.create_revision),
        ]
        if await self.etcd.txn(guards, [Put(held.key, keys.encode(merged(before, found)))]) is not None:
            log.info("version.measured", model=key[0], version=key[1], node=found.node_id, memory=found.memory_bytes)


def _larger(
    held: registry_pb2.Measured | None, model: membership_pb2.ModelStatus, node: membership_pb2.Node
) -> registry_pb2.Measured:
    """No more than the node has: what is kept is never taken back, and more would keep the version off all nodes."""
    largest = max((gpu.memory_bytes for gpu in node.capacity.gpus), default=0)
    found = registry_pb2.Measured(
        memory_bytes=min(model.measured_memory_bytes, node.capacity.memory_bytes),
        gpu_memory_bytes=min(model.measured_gpu_memory_bytes, largest),
        load_time=model.load_time,
        node_id=node.id,
    )
    if held is None:
        return found
    return merged(held, found) if held.memory_bytes <= found.memory_bytes else merged(found, held)


def _worth_keeping(held: registry_pb2.Measured | None, found: registry_pb2.Measured) -> bool:
    return (
        held is None
        or found.memory_bytes > LARGER * held.memory_bytes
        or found.gpu_memory_bytes > LARGER * held.gpu_memory_bytes
    )

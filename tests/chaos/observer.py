"""Watches a mesh from outside: etcd's keys as they change, what every coordinator says, and how late this runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc.aio

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.decode import advance
from coordinator.etcd import Etcd, KeyValue
from coordinator.settings import EtcdSettings
from coordinator.state import State
from coordinator.xds.readiness import find_serving
from meshkit.errors import UnavailableError
from tests.chaos.history import Leader, Look, Node, Route, Stall
from tests.chaos.load import MODEL
from tests.chaos.machine import Others
from tests.chaos.mesh import INSIDE, Mesh

LOOK_S = 0.2
STALL_S = 0.5
"""How often it is asked what the rest of the machine does."""
_NODES = keys.node("")


class Observer:
    """Tells `listener` facts of history.py until cancelled. One watch a member, so that a member that hangs hides
    nothing; each revision is told once."""

    def __init__(self, mesh: Mesh, listener: Callable[[object], None]) -> None:
        self.state = State()
        self.term = 0
        self._mesh = mesh
        self._tell = listener
        self._serving: set[str] = set()

    async def run(self) -> None:
        """Until cancelled. Raises UnavailableError when etcd does not answer at the beginning."""
        etcd = Etcd(EtcdSettings(endpoints=tuple(map(self._address, self._mesh.members))))
        self._take(*await etcd.list(keys.ROOT))
        await etcd.close()
        async with asyncio.TaskGroup() as tasks:
            for member in self._mesh.members:
                tasks.create_task(self._follow(member))
            tasks.create_task(self._look_forever())
            tasks.create_task(self._notice_stalls())

    def serving(self) -> list[str]:
        """Nodes that the routes send requests to."""
        found = find_serving(self.state).by_version
        return sorted({endpoint.node for (name, _), each in found.items() if name == MODEL for endpoint in each})

    async def problems(self) -> list[str]:
        """What is not as it should be at this moment, by what every coordinator says."""
        names = self._mesh.coordinators
        answers = await asyncio.gather(*map(self._mesh.status, names), return_exceptions=True)
        statuses = {}
        found = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                found.append(f"{name}: {answer.code().name}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                statuses[name] = answer
                found += [f"{name}: {problem}" for problem in status_problems(answer, names, self._mesh.nodes)]
        if len({status.revision for status in statuses.values()}) > 1:
            found.append(f"revisions differ: {[status.revision for status in statuses.values()]}")
        return found

    def _address(self, member: str) -> str:
        return f"{INSIDE}:{self._mesh.port(member)}"

    async def _follow(self, member: str) -> None:
        """Watches through one member, from what is known, for ever."""
        etcd = Etcd(EtcdSettings(endpoints=(self._address(member),)))
        try:
            while True:
                try:
                    async for batch in etcd.watch(keys.ROOT, self.state.revision):
                        self._take(batch.revision, batch.changes)
                except UnavailableError:
                    await asyncio.sleep(0.1)
        finally:
            await etcd.close()

    def _take(self, revision: int, changes: Sequence[KeyValue]) -> None:
        """Tells what is new, in the order of revisions."""
        new = sorted((c for c in changes if c.mod_revision > self.state.revision), key=lambda c: c.mod_revision)
        now = time.monotonic()
        for change in new:
            if change.key == keys.LEADER:
                self.term = change.create_revision if change.value is not None else 0
                self._tell(Leader(now, change.mod_revision, self.term, (change.value or b"").decode()))
            elif change.key.startswith(_NODES) and change.value is not None:
                node = keys.parse(change.value, membership_pb2.Node())
                state = membership_pb2.NodeState.Name(node.state)
                self._tell(Node(now, change.mod_revision, node.id, node.epoch, state, node.report.triton.pid))
        self.state = advance(self.state, max(revision, self.state.revision), new)
        serving = set(self.serving())
        for changed in sorted(serving ^ self._serving):
            self._tell(Route(now, changed, changed in serving))
        self._serving = serving

    async def _look_forever(self) -> None:
        while True:
            at = time.monotonic()
            self._tell(Look(at, await self.problems()))
            await asyncio.sleep(LOOK_S)

    async def _notice_stalls(self) -> None:
        others, before = Others(self._mesh.folder), time.monotonic()
        while True:
            await asyncio.sleep(STALL_S)
            now, share = time.monotonic(), others.share()
            self._tell(Stall(now, share * (now - before)))
            before = now


def status_problems(status: cluster_pb2.Status, coordinators: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """What is not as it should be in a mesh of these, by one coordinator's status."""
    found = [f"frozen: {status.frozen}"] if status.frozen else []
    live = [coordinator.id for coordinator in status.coordinators]
    if live != sorted(coordinators):
        found.append(f"coordinators are {live}")
    leaders = [coordinator.id for coordinator in status.coordinators if coordinator.leader]
    if len(leaders) != 1:
        found.append(f"leaders are {leaders}")
    states = {entry.node.id: membership_pb2.NodeState.Name(entry.node.state) for entry in status.nodes}
    found += [f"{node} is {states.get(node)}" for node in nodes if states.get(node) != "NODE_STATE_READY"]
    for entry in status.deployments:
        for target in entry.targets:
            if target.ready < target.wanted or len(target.nodes) != target.wanted:
                found.append(f"{entry.deployment.name} has {target.ready} of {target.wanted} on {list(target.nodes)}")
    return found

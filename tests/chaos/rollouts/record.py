"""Writes down what is decided, from outside: the keys of one deployment, of its rollout and of the leader in etcd."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.etcd import Etcd, KeyValue
from coordinator.settings import EtcdSettings
from meshkit.errors import UnavailableError
from tests.chaos.history import Leader, Stall
from tests.chaos.machine import Others
from tests.chaos.mesh import INSIDE, Mesh
from tests.chaos.observer import STALL_S
from tests.chaos.rollouts.history import Move, Wish
from tests.chaos.rollouts.models import MODEL


class Record:
    """Tells `listener` facts until cancelled, and holds what was written last."""

    def __init__(self, mesh: Mesh, listener: Callable[[object], None]) -> None:
        self._mesh = mesh
        self._tell = listener
        self.deployment = routing_pb2.Deployment()
        self.rollout = rollout_pb2.Rollout()
        self.wish: Wish | None = None
        self.leader = ""
        self.term = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """For ever. Raises UnavailableError when etcd does not answer at the beginning."""
        member = self._mesh.members[0]
        etcd = Etcd(EtcdSettings(endpoints=(f"{INSIDE}:{self._mesh.port(member)}",)))
        stalls = asyncio.create_task(self._notice_stalls())
        try:
            revision, found = await etcd.list(keys.ROOT)
            for each in found:
                self._take(each)
            while True:
                with contextlib.suppress(UnavailableError):
                    async for batch in etcd.watch(keys.ROOT, revision):
                        revision = max(revision, batch.revision)
                        for change in batch.changes:
                            self._take(change)
                await asyncio.sleep(0.1)
        finally:
            stalls.cancel()
            await asyncio.wait([stalls])
            await etcd.close()

    async def changed(self) -> None:
        """Waits for the next change of the rollout or the leader."""
        self._changed.clear()
        await self._changed.wait()

    def _take(self, change: KeyValue) -> None:
        now = time.monotonic()
        if change.key == keys.LEADER:
            self.leader = (change.value or b"").decode()
            self.term = change.create_revision if change.value is not None else 0
            self._tell(Leader(now, change.mod_revision, self.term, self.leader))
        elif change.key == keys.deployment(MODEL) and change.value is not None:
            self.deployment = keys.parse(change.value, routing_pb2.Deployment())
            self.wish = wish(now, change.mod_revision, self.deployment)
            self._tell(self.wish)
        elif change.key == keys.rollout(MODEL) and change.value is not None:
            self.rollout = keys.parse(change.value, rollout_pb2.Rollout())
            self._tell(move(now, change.mod_revision, self.rollout))
        else:
            return
        self._changed.set()

    async def _notice_stalls(self) -> None:
        others, before = Others(self._mesh.folder), time.monotonic()
        while True:
            await asyncio.sleep(STALL_S)
            now, share = time.monotonic(), others.share()
            self._tell(Stall(now, share * (now - before)))
            before = now


def wish(at: float, revision: int, deployment: routing_pb2.Deployment) -> Wish:
    """A deployment as a fact."""
    weights = {target.version: target.weight for target in deployment.targets}
    replicas = {target.version: target.replicas for target in deployment.targets}
    policy = deployment.policy
    return Wish(at, revision, weights, replicas, policy.sticky.header, policy.mirror.version)


def move(at: float, revision: int, rollout: rollout_pb2.Rollout) -> Move:
    """A rollout as a fact."""
    state = rollout_pb2.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_")
    phase = rollout_pb2.Phase.Name(rollout.phase).removeprefix("PHASE_")
    return Move(at, revision, rollout.id, state, phase, rollout.step, rollout.reason)

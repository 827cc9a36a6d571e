"""The leader's rollout controller: level-triggered, so it may stop and start between any two lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Created, Etcd, KeyValue, Put, Unchanged
from coordinator.faults import Faults
from coordinator.mirror import Mirror
from coordinator.rollout.advance import advance
from coordinator.rollout.course import is_over
from coordinator.rollout.observe import observe
from coordinator.rollout.record import ACKNOWLEDGING, Advance, Judged
from coordinator.rollout.timing import PACE_S
from coordinator.state import State
from meshkit.errors import SupersededError, UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()

REST_S = 0.05
"""Least time between two looks: a burst of changes becomes one."""
AT_ONCE = 16
"""Rollouts that are looked at at the same time."""
STOPPED = "does not go on, for a fault of the coordinator: "
"""Begins the reason of a rollout whose next step cannot be worked out."""


class Judge(Protocol):
    """What the steps are judged by."""

    async def judge(self, state: State, rollout: rollout_pb2.Rollout) -> Judged | None:
        """The judgement of the present step; None when there is nothing to judge."""

    def forget(self) -> None:
        """Of everything that was measured: another term has begun."""


@dataclass
class RolloutController:
    """Carries out every rollout that is not over, on whichever coordinator leads."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    missing: Callable[[str, int], Awaitable[Sequence[str]]]
    """Who has not acknowledged a deployment as of a revision, and what else is to be there before requests move."""
    judge: Judge
    now_ns: Callable[[], int] = time.time_ns
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE), init=False)
    _faults: Faults = field(default_factory=lambda: Faults("rollout.fault"), init=False)

    async def run(self) -> None:
        """Looks at each change, and every PACE_S seconds, until cancelled."""
        term = 0
        while True:
            state = self.mirror.state
            if term != self.election.term:
                term = self.election.term
                self.judge.forget()
            if term and not self.mirror.frozen:
                await self.look(state, self.election.fence())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PACE_S):
                    await self.mirror.newer_than(state)
            await asyncio.sleep(REST_S)

    async def look(self, state: State, fence: Created) -> None:
        """Does the next thing of every rollout that is not over. What one of them breaks on is no other's matter."""
        async with asyncio.TaskGroup() as tasks:
            for name, rollout in sorted(state.rollouts.items()):
                if not is_over(rollout):
                    tasks.create_task(self._one(state, name, rollout, fence))

    async def _one(self, state: State, name: str, rollout: rollout_pb2.Rollout, fence: Created) -> None:
        async with self._slots:
            seen = rollout.id, rollout.state, rollout.phase, rollout.step
            with self._faults.kept(name, seen):
                await self._step(state, name, rollout, fence)
            if fault := self._faults.of(name):
                with self._faults.kept(f"{name}: saying so", seen):
                    await self._say(state, name, rollout, f"{STOPPED}{fault}", fence)

    async def _step(self, state: State, name: str, rollout: rollout_pb2.Rollout, fence: Created) -> None:
        asked = rollout.phase == ACKNOWLEDGING and rollout.awaited_revision
        missing = await self.missing(name, rollout.awaited_revision) if asked else None
        judged = await self._judged(state, name, rollout)
        if missing is not None and judged is not None and judged.broken and rollout.step == 0:
            missing = [*missing, judged.broken]  # no request before it is known what the gates say
        seen = observe(state, rollout, self.now_ns(), missing, judged)
        found = advance(rollout, state.deployments.get(name), seen)
        if found is None:
            if rollout.reason.startswith(STOPPED):
                await self._say(state, name, rollout, "goes on", fence)
            return
        if await self._written(state, name, found, fence):
            failpoint("rollout.written")
            _tell(name, rollout, found.rollout)

    async def _judged(self, state: State, name: str, rollout: rollout_pb2.Rollout) -> Judged | None:
        """The judgement; one that cannot be come to holds the rollout, and never lets it go on by time alone."""
        subject = f"{name}: judgement"
        with self._faults.kept(subject, (rollout.id, rollout.step)):
            return await self.judge.judge(state, rollout)
        return Judged(rollout_pb2.VERDICT_INCONCLUSIVE, broken=f"it could not be judged: {self._faults.of(subject)}")

    async def _say(self, state: State, name: str, rollout: rollout_pb2.Rollout, reason: str, fence: Created) -> None:
        """Writes another reason, when it is another."""
        if rollout.reason != reason:
            made = rollout_pb2.Rollout()
            made.CopyFrom(rollout)
            made.reason = reason
            await self._written(state, name, Advance(made), fence)

    async def _written(self, state: State, name: str, found: Advance, fence: Created) -> bool:
        try:
            failpoint("rollout.decided")
            return await self._write(state, name, found, fence)
        except (SupersededError, UnavailableError) as error:
            log.warning("rollout.not_written", name=name, reason=error.message)
            return False

    async def _write(self, state: State, name: str, found: Advance, fence: Created) -> bool:
        """Writes both at one revision. Whether it did: not when what was decided on is not what there is."""
        _, (rollout, deployment) = await self.etcd.get(keys.rollout(name), keys.deployment(name))
        if _parsed(rollout, rollout_pb2.Rollout()) != state.rollouts[name]:
            return False
        if _parsed(deployment, routing_pb2.Deployment()) != state.deployments.get(name):
            return False
        changes = [Put(rollout.key, keys.encode(found.rollout))]
        if found.deployment is not None:
            changes.append(Put(deployment.key, keys.encode(found.deployment)))
        guards: list[Created | Unchanged] = [fence]
        guards += [Unchanged(each.key, each.mod_revision) for each in (rollout, deployment)]
        revision = await self.etcd.txn(guards, changes)
        if revision is None:
            return False
        await self.mirror.reached(revision)  # the next look is at what was written
        return True


def _parsed(found: KeyValue, into: keys.Parsed) -> keys.Parsed | None:
    return keys.parse(found.value, into) if found.value is not None else None


def _tell(name: str, before: rollout_pb2.Rollout, now: rollout_pb2.Rollout) -> None:
    if (before.state, before.phase, before.step) != (now.state, now.phase, now.step):
        state = rollout_pb2.RolloutState.Name(now.state).removeprefix("ROLLOUT_STATE_")
        phase = rollout_pb2.Phase.Name(now.phase).removeprefix("PHASE_")
        log.info("rollout.moved", name=name, state=state, phase=phase, step=now.step, reason=now.reason)

"""RolloutService: starts and steers rollouts; the leader's controller carries them out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.etcd import Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.order import Order
from coordinator.paging import page
from coordinator.placing import placed
from coordinator.rollout import steering
from coordinator.rollout.check import check_no_other
from coordinator.rollout.course import is_over
from coordinator.rollout.gates import check_gates
from coordinator.rollout.measured import PASSED_ON, Measured
from coordinator.rollout.plan import Planned, plan, plan_back
from coordinator.rollout.record import LOADING, RUNNING
from meshkit.auth import current_principal
from meshkit.errors import NotFoundError, SupersededError

PACE_S = 1.0
"""How often a watch shows what is measured, which is no change."""
CHANGE_TRIES = 5
CheckSpec = Callable[[rollout_pb2.RolloutSpec], Awaitable[None]]
"""Raises for what the plan does not look at: gates that do not compile, a version that is not to be tried."""


async def check_spec_gates(spec: rollout_pb2.RolloutSpec) -> None:
    """Raises InvalidInputError when the gates name what there is not, or their policy does not compile."""
    await asyncio.to_thread(check_gates, spec.gates)


@dataclass
class RolloutService(rollout_pb2_grpc.RolloutServiceServicer):
    """Serves aimesh.rollout.v1. A write only states what is wanted; the leader carries it out."""

    etcd: Etcd
    mirror: Mirror
    outbox: Outbox
    measured: Measured
    checks: Sequence[CheckSpec] = (check_spec_gates,)
    now_ns: Callable[[], int] = time.time_ns

    async def PlanRollout(  # noqa: N802
        self, request: rollout_pb2.PlanRolloutRequest, context: Any
    ) -> rollout_pb2.PlanRolloutResponse:
        """What a rollout would do."""
        return rollout_pb2.PlanRolloutResponse(plan=(await self._planned(request.spec)).plan)

    async def StartRollout(  # noqa: N802
        self, request: rollout_pb2.StartRolloutRequest, context: Any
    ) -> rollout_pb2.StartRolloutResponse:
        """Starts one; see rollout.proto."""
        planned = await self._planned(request.spec)
        rollout = await self._start(planned)
        return rollout_pb2.StartRolloutResponse(rollout=rollout, plan=planned.plan)

    async def GetRollout(  # noqa: N802
        self, request: rollout_pb2.GetRolloutRequest, context: Any
    ) -> rollout_pb2.GetRolloutResponse:
        """The newest rollout of a deployment."""
        rollout = self._found(request.name)
        passed_on = any(key == PASSED_ON for key, _ in context.invocation_metadata() or ())
        found = await self._comparisons(rollout, passed_on=passed_on)
        return rollout_pb2.GetRolloutResponse(rollout=rollout, comparisons=found)

    async def ListRollouts(  # noqa: N802
        self, request: rollout_pb2.ListRolloutsRequest, context: Any
    ) -> rollout_pb2.ListRolloutsResponse:
        """A page of rollouts, by name."""
        found = [rollout for _, rollout in sorted(self.mirror.state.rollouts.items())]
        items, token = page(found, request.page_size, request.page_token, lambda rollout: rollout.spec.name)
        return rollout_pb2.ListRolloutsResponse(rollouts=items, next_page_token=token)

    async def WatchRollout(  # noqa: N802
        self, request: rollout_pb2.WatchRolloutRequest, context: Any
    ) -> AsyncIterator[rollout_pb2.WatchRolloutResponse]:
        """The rollout now and on each change, until it is over."""
        last: rollout_pb2.WatchRolloutResponse | None = None
        while True:
            state = self.mirror.state
            rollout = self._found(request.name)
            shown = rollout_pb2.WatchRolloutResponse(rollout=rollout, comparisons=await self._comparisons(rollout))
            if shown != last:
                yield shown
                last = shown
            if is_over(rollout):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PACE_S):
                    while self.mirror.state.rollouts.get(request.name) is rollout:
                        state = await self.mirror.newer_than(state)

    async def PauseRollout(  # noqa: N802
        self, request: rollout_pb2.PauseRolloutRequest, context: Any
    ) -> rollout_pb2.PauseRolloutResponse:
        """Stops at the weights it has."""
        order = self._order(request.reason)
        return rollout_pb2.PauseRolloutResponse(
            rollout=await self._change(request.name, lambda rollout: steering.paused(rollout, order))
        )

    async def ResumeRollout(  # noqa: N802
        self, request: rollout_pb2.ResumeRolloutRequest, context: Any
    ) -> rollout_pb2.ResumeRolloutResponse:
        """Goes on after a pause or a hold."""
        order = self._order(request.reason)
        return rollout_pb2.ResumeRolloutResponse(
            rollout=await self._change(request.name, lambda rollout: steering.resumed(rollout, order))
        )

    async def PromoteRollout(  # noqa: N802
        self, request: rollout_pb2.PromoteRolloutRequest, context: Any
    ) -> rollout_pb2.PromoteRolloutResponse:
        """Goes to the last step at once."""
        order = self._order(request.reason)
        return rollout_pb2.PromoteRolloutResponse(
            rollout=await self._change(request.name, lambda rollout: steering.promoted(rollout, order, request.version))
        )

    async def AbortRollout(  # noqa: N802
        self, request: rollout_pb2.AbortRolloutRequest, context: Any
    ) -> rollout_pb2.AbortRolloutResponse:
        """Goes back to what was there before."""
        order = self._order(request.reason)
        return rollout_pb2.AbortRolloutResponse(
            rollout=await self._change(request.name, lambda rollout: steering.aborted(rollout, order))
        )

    async def UndoRollout(  # noqa: N802
        self, request: rollout_pb2.UndoRolloutRequest, context: Any
    ) -> rollout_pb2.UndoRolloutResponse:
        """Starts a rollout back after one that succeeded."""
        ended = self._found(request.name)
        state = self.mirror.state
        steering.check_undo(ended, state.deployments.get(request.name))
        await placed(state)
        planned = plan_back(state, ended)
        reason = f"undoes the rollout to {ended.spec.version}{f': {request.reason}' if request.reason else ''}"
        return rollout_pb2.UndoRolloutResponse(rollout=await self._start(planned, reason))

    async def _planned(self, spec: rollout_pb2.RolloutSpec) -> Planned:
        state = self.mirror.state
        await placed(state)  # the plan asks for it, without keeping everybody waiting
        planned = plan(state, spec)
        for check in self.checks:
            await check(planned.spec)
        return planned

    async def _start(self, planned: Planned, reason: str = "") -> rollout_pb2.Rollout:
        """Writes a new rollout, if nothing that it was planned on has changed."""
        name, steps = planned.spec.name, planned.plan.steps
        versions = sorted({target.version for step in steps for target in step.targets})
        rollout_key, deployment_key = keys.rollout(name), keys.deployment(name)
        _, read = await self.etcd.get(rollout_key, deployment_key, *(keys.version(name, each) for each in versions))
        held = keys.parse(read[0].value, rollout_pb2.Rollout()) if read[0].value is not None else None
        check_no_other(held)
        deployment = keys.parse(read[1].value or b"{}", routing_pb2.Deployment())
        if deployment != planned.before or any(each.value is None for each in read[2:]):
            raise SupersededError(f"deployment {name} changed in the meantime", hint="try again")
        rollout = self._new(planned, reason)
        await self._write(rollout, read[0].value, [Unchanged(each.key, each.mod_revision) for each in read])
        return rollout

    def _new(self, planned: Planned, reason: str) -> rollout_pb2.Rollout:
        rollout = rollout_pb2.Rollout(
            id=f"{planned.spec.name}-{secrets.token_hex(4)}",
            spec=planned.spec,
            before=planned.before,
            state=RUNNING,
            phase=LOADING,
            steps=planned.plan.steps,
            reason=reason or "started",
            started_by=current_principal().actor,
        )
        rollout.started_at.FromNanoseconds(self.now_ns())
        rollout.since.CopyFrom(rollout.started_at)
        return rollout

    async def _change(
        self, name: str, make: Callable[[rollout_pb2.Rollout], rollout_pb2.Rollout]
    ) -> rollout_pb2.Rollout:
        """Writes what `make` makes of the newest rollout of a deployment. Raises what it raises.

        Tried again when the leader writes at the same moment, as it does many times a second while things move.
        """
        for tries_left in reversed(range(CHANGE_TRIES)):
            _, (held,) = await self.etcd.get(keys.rollout(name))
            if held.value is None:
                raise _none(name)
            rollout = make(keys.parse(held.value, rollout_pb2.Rollout()))
            try:
                await self._write(rollout, held.value, [Unchanged(held.key, held.mod_revision)])
            except SupersededError:
                if not tries_left:
                    raise
            else:
                break
        return rollout

    async def _write(self, rollout: rollout_pb2.Rollout, before: bytes | None, guards: Sequence[Unchanged]) -> None:
        key, value = keys.rollout(rollout.spec.name), keys.encode(rollout)
        event = await self.outbox.event(key, before, value)
        revision = await self.etcd.txn(guards, [Put(key, value), event])
        if revision is None:
            raise SupersededError(f"the rollout of {rollout.spec.name} moved on at this moment", hint="try again")
        await self.mirror.reached(revision)

    def _order(self, reason: str) -> Order:
        return Order(current_principal().actor, reason, self.now_ns())

    def _found(self, name: str) -> rollout_pb2.Rollout:
        rollout = self.mirror.state.rollouts.get(name)
        if rollout is None:
            raise _none(name)
        return rollout

    async def _comparisons(
        self, rollout: rollout_pb2.Rollout, *, passed_on: bool = False
    ) -> Sequence[rollout_pb2.Comparison]:
        return [] if is_over(rollout) else await self.measured(rollout.spec.name, passed_on=passed_on)


def _none(name: str) -> NotFoundError:
    return NotFoundError(
        f"{name!r} never had a rollout", hint=f"run: aimesh rollout start {name}:VERSION", reason="ROLLOUT_NOT_FOUND"
    )

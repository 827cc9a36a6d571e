"""Carries experiments out: level-triggered, so it may stop and start between any two lines.

Where all coordinators share one database the leader does it; a database that is one coordinator's file is carried out
by that coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from aimesh.experiment.v1 import experiment_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Created, Put
from coordinator.evaluation.dataset import parse
from coordinator.experiments import gating, lifecycle
from coordinator.experiments.asking import TimedAsker, check_served
from coordinator.experiments.evaluate import Evaluation, Wanted
from coordinator.experiments.lifecycle import LEADER
from coordinator.experiments.quarantine import Quarantines
from coordinator.experiments.store import Held, Result
from coordinator.experiments.threads import Threaded
from coordinator.identity.outbox import Outbox
from coordinator.order import Order
from coordinator.registry.aliases import Aliases
from meshkit.auth import act_as
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, NotFoundError, PreconditionError, SupersededError, UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()

PACE_S = 1.0
"""How often open experiments are looked at."""
IDLE_S = 2.0
"""How often others' new ones are looked for while none is open."""
STABLE = "stable"
"""The alias that a promoted candidate gets."""
_EVENTS = 100
_ACTION = "experiment"
"""In audit events: what the leader does by itself is no call."""


@dataclass
class Experimenter:
    """Leads every experiment from state to state."""

    store: Threaded
    election: Election
    evaluation: Evaluation
    asker: TimedAsker
    aliases: Aliases
    quarantines: Quarantines
    outbox: Outbox
    now_ns: Callable[[], int] = time.time_ns
    _bells: list[asyncio.Event] = field(default_factory=list, init=False)
    """One a loop, set when something has changed."""
    failing: str = field(default="", init=False)
    """Why the database could not be used the last time."""

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again(self._steer))
            tasks.create_task(self._again(self._execute))

    def ring(self) -> None:
        """Says that something has changed: it is looked at now."""
        for bell in self._bells:
            bell.set()

    async def change(self, held: Held, now: experiment_pb2.Experiment, result: Result | None = None) -> Held:
        """Writes what has become of one, with its audit event; a mere reason is none. Raises SupersededError."""
        event = None
        if now.state != held.experiment.state or len(now.events) != len(held.experiment.events):
            event = self.outbox.draft(_target(now), keys.encode(_told(held.experiment)), keys.encode(_told(now)))
        written = await self.store.change(held, now, event, result)
        if event is not None:
            log.info("experiment.moved", name=now.spec.name, state=lifecycle.word(now.state), reason=now.reason)
        self.ring()
        return written

    async def _again(self, look: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        backoff = Backoff(first_s=0.5, most_s=10.0)
        act_as(LEADER, _ACTION)
        bell = asyncio.Event()
        self._bells.append(bell)
        while True:
            bell.clear()
            pause = IDLE_S
            if self._mine():
                try:
                    pause = PACE_S if await look() else IDLE_S
                    self._say("")
                    backoff.reset()
                except UnavailableError as error:
                    self._say(error.message)
                    pause = backoff.next_delay()
                except SupersededError as error:  # a person was quicker, or another leads
                    log.info("experiment.superseded", reason=error.message)
                    pause = PACE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await bell.wait()

    def _mine(self) -> bool:
        mirror = self.evaluation.mirror
        return not mirror.frozen and self.store.used and bool(self.election.term or not self.store.shared)

    def _fence(self) -> list[Created]:
        return [self.election.fence()] if self.store.shared else []

    # --- what takes no time -------------------------------------------------------------------------------------------

    async def _steer(self) -> bool:
        """Judges, promotes, quarantines. Whether something is open."""
        await self._move_events()
        states = (lifecycle.EVALUATED, lifecycle.PROMOTING, lifecycle.QUARANTINING)
        open_ones = await self.store.in_states(states)
        for held in open_ones:
            try:
                await self._step(held)
            except UnavailableError:
                raise
            except AimeshError as error:
                await self._wait(held, f"{error.message}; tried again")
        return bool(open_ones)

    async def _step(self, held: Held) -> None:
        experiment = held.experiment
        if experiment.state == lifecycle.EVALUATED:
            await self._judge(held)
        elif experiment.state == lifecycle.PROMOTING:
            await self._promote(held)
        else:
            await self.quarantines.put(experiment, self._fence())
            failpoint("experiment.quarantined")
            why = lifecycle.last_order(experiment, lifecycle.QUARANTINING).reason
            await self.change(held, lifecycle.moved(experiment, lifecycle.QUARANTINED, self._order(why)))

    async def _judge(self, held: Held) -> None:
        experiment = held.experiment
        result = await self.store.result(experiment.spec.name)
        assert result is not None  # written with the state
        found = await asyncio.to_thread(gating.verdict, experiment.spec.gates, result.windows)
        verdict = rollout_pb2.Verdict.Value(rollout_pb2.Verdict.Name(found.verdict))
        judged = lifecycle.judged(experiment, verdict, found.reason, found.comparisons, self.now_ns())
        await self.change(held, judged)

    async def _promote(self, held: Held) -> None:
        """The alias through the same transaction as SetAlias; then the quarantine that a person overrides."""
        experiment, spec = held.experiment, held.experiment.spec
        order = lifecycle.last_order(experiment, lifecycle.PROMOTING)
        moved = await self.aliases.set(spec.model, STABLE, spec.candidate, self._fence())
        failpoint("experiment.promoted")
        known = self.evaluation.mirror.state.quarantined.get(experiment.hash)
        if order.by != LEADER and known is not None and not known.HasField("review"):
            await self.quarantines.release(experiment.hash, replace(order, reason=f"promoted: {order.reason}"))
        before = f", was {moved.previous}" if moved.previous not in ("", spec.candidate) else ""
        why = f"{STABLE} is {spec.candidate}{before}: {order.reason}"
        await self.change(held, lifecycle.moved(experiment, lifecycle.PROMOTED, replace(self._order(why), by=order.by)))

    async def _move_events(self) -> None:
        """Into etcd, from where the leader moves all audit events to the log, each once by its id."""
        while found := await self.store.events(_EVENTS):
            for event in found:
                await self.quarantines.etcd.txn([], [Put(keys.audit_event(event.id), keys.encode(event))])
            await self.store.forget_events([event.id for event in found])

    # --- what takes long ----------------------------------------------------------------------------------------------

    async def _execute(self) -> bool:
        """One experiment after the other. Whether one waits."""
        open_ones = await self.store.in_states((lifecycle.CREATED, lifecycle.EXECUTING))
        for held in open_ones:
            await self._run(held)
        return bool(open_ones)

    async def _run(self, held: Held) -> None:
        try:
            wanted = await self._wanted(held.experiment)
            check_served(self.evaluation.mirror.state, [wanted.baseline, wanted.candidate])
        except PreconditionError as error:
            await self._wait(held, f"{error.message}: {error.hint}")
            return
        except NotFoundError as error:
            await self.change(held, lifecycle.moved(held.experiment, lifecycle.CANCELLED, self._order(error.message)))
            return
        held = await self.change(held, lifecycle.executing(held.experiment, self.now_ns()))
        asker = replace(self.asker, parameters=dict(held.experiment.spec.parameters))
        try:
            result = await self._while_wanted(held, self.evaluation.run(wanted, asker))
        except (UnavailableError, PreconditionError) as error:
            await self._wait(held, f"{error.message}; begun anew when that is over")
            await asyncio.sleep(PACE_S)
            return
        except (AimeshError, OSError) as error:  # the latter of a user's scorer
            said = error.message if isinstance(error, AimeshError) else str(error)
            why = self._order(f"could not be evaluated: {said}")
            await self.change(held, lifecycle.moved(held.experiment, lifecycle.CANCELLED, why))
            return
        failpoint("experiment.executed")
        summary = self._order(result.report.summary)
        await self.change(held, lifecycle.moved(held.experiment, lifecycle.EVALUATED, summary), result)

    async def _while_wanted(self, held: Held, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result, as long as nobody cancels the experiment or takes it over. Raises SupersededError."""
        task = asyncio.create_task(work, name=f"experiment {held.experiment.spec.name}")
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=PACE_S)
                if not task.done() and (await self.store.get(held.experiment.spec.name)).revision != held.revision:
                    raise SupersededError(f"experiment {held.experiment.spec.name!r} is not to go on")
                if not self._mine():
                    raise SupersededError("this coordinator does not lead any more")
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _wanted(self, experiment: experiment_pb2.Experiment) -> Wanted:
        spec = experiment.spec
        questions = await asyncio.to_thread(parse, await self.store.dataset(spec.evaluation.dataset))
        baseline, candidate = (self._version(experiment, each) for each in (spec.baseline, spec.candidate))
        return Wanted(baseline, candidate, spec.evaluation, questions, spec.repeat)

    def _version(self, experiment: experiment_pb2.Experiment, number: str) -> registry_pb2.ModelVersion:
        key = (experiment.spec.model, number)
        found = self.evaluation.mirror.state.versions.get(key)
        if found is None:
            raise NotFoundError(f"{key[0]}:{key[1]} was removed")
        return found

    async def _wait(self, held: Held, reason: str) -> None:
        if reason != held.experiment.reason:
            await self.store.change(held, lifecycle.waiting(held.experiment, reason), None, None)

    def _order(self, reason: str) -> Order:
        return Order(LEADER, reason, self.now_ns())

    def _say(self, failing: str) -> None:
        if failing and failing != self.failing:
            log.error("experiments.stopped", reason=failing)
        elif self.failing and not failing:
            log.info("experiments.going_on")
        self.failing = failing


def _target(experiment: experiment_pb2.Experiment) -> str:
    return f"experiments/{experiment.spec.name}"


def _told(experiment: experiment_pb2.Experiment) -> experiment_pb2.Experiment:
    """What an audit event shows of it: not all that happened before, once more."""
    made = experiment_pb2.Experiment()
    made.CopyFrom(experiment)
    del made.events[:-1]
    return made

"""The search: some trials at a time, each a job of the mesh that is followed to its end.

Whatever is decided is in the study's database before anything is done about it, so a command that is killed between any
two lines is followed by one that goes on: a trial without a job is submitted, under the id that was kept for it; a job
is followed again; one that was to be pruned is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from aimesh.training.v1 import training_pb2
from meshkit.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError, SupersededError
from tools.cli.target import Mesh
from tools.training.status import phase_of
from tools.tuning import service
from tools.tuning.claims import BEAT_S
from tools.tuning.course import Outcome, outcome, parts
from tools.tuning.ledger import Ledger, Task
from tools.tuning.samplers import most_trials
from tools.tuning.studyfile import Tune, trial_spec

MOST_FAILURES = 3
"""So many trials may fail before one succeeds."""
LOOK_S = 1.0
"""Between two looks for trials that other commands have left."""
_OVER = (training_pb2.JOB_STATE_SUCCEEDED, training_pb2.JOB_STATE_FAILED)
REFUSED = (InvalidInputError, NotFoundError, PreconditionError, ConflictError)


@dataclass
class Going:
    """Trials that this command follows, for who shows them."""

    running: dict[int, str] = field(default_factory=dict)
    """How far each is, by number, for people."""
    ended: dict[int, Outcome] = field(default_factory=dict)


@dataclass
class Search:
    """One command's part of a study."""

    mesh: Mesh
    ledger: Ledger
    tune: Tune
    base: training_pb2.JobSpec
    """The job as its file says, uploaded."""
    changed: Callable[[Going], None] = lambda _: None
    """Told whenever something has moved."""
    going: Going = field(default_factory=Going)
    _taking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Until every trial of the study has ended, whoever follows it."""
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat())
            async with asyncio.TaskGroup() as slots:
                for _ in range(self.tune.parallel):
                    slots.create_task(self._slot())
            beating.cancel()

    async def _slot(self) -> None:
        while True:
            async with self._taking:
                task = await asyncio.to_thread(self._take)
            if task is not None:
                await self._carry(task)
            elif not await asyncio.to_thread(self.ledger.running):
                return
            else:
                await asyncio.sleep(LOOK_S)

    def _take(self) -> Task | None:
        left = self.ledger.orphan(self.tune)
        return left if left is not None else self.ledger.fresh(self.tune, most_trials(self.tune))

    async def _carry(self, task: Task) -> None:
        """One trial to its end. A job that is refused fails its trial alone; after some of those, the search."""
        self._show(task, "submitted again" if task.job else "submitted")
        try:
            found = await self._end(task)
        except SupersededError:  # this one stood still for so long that another has taken the trial and ended it
            return
        finally:
            self.going.running.pop(task.number, None)
        self.going.ended[task.number] = found
        self.changed(self.going)
        self._check_failures(found)

    async def _end(self, task: Task) -> Outcome:
        try:
            found = await self._outcome(task)
        except REFUSED as error:
            found = Outcome("fail", error=str(error))
        await asyncio.to_thread(self.ledger.tell, task, found)
        return found

    async def _outcome(self, task: Task) -> Outcome:
        if not task.job:
            name = f"{self.tune.study}-{task.number}"
            spec = trial_spec(self.base, self.tune, task.labels, name, discard=True)
            made = await service.submit(self.mesh, spec, task.request)
            await asyncio.to_thread(self.ledger.submitted, task, made.id)
        cancelled, last = False, training_pb2.Job()
        async for view in service.watched(self.mesh, task.job):
            last = view.job
            measured = parts(view.progress.points, view.progress.steps, self.tune.prune_by)
            why = await asyncio.to_thread(self.ledger.report, task, self.tune.prune_sign, measured)
            if why and not cancelled and last.state not in _OVER:
                cancelled = await service.cancel(self.mesh, task.job, f"{why}, study {self.tune.study}")
            self._show(task, _far(view))
        return outcome(last, self.tune.metric, pruned=bool(task.pruned))

    def _check_failures(self, found: Outcome) -> None:
        """Raises PreconditionError when nothing but failures has come."""
        ended = self.going.ended.values()
        if found.state == "fail" and len(ended) >= MOST_FAILURES and all(each.state == "fail" for each in ended):
            raise PreconditionError(
                f"the first {len(ended)} trials failed, the last one: {found.error}",
                hint=f"see: aimesh train tune show {self.tune.study}; then the same command goes on",
                reason="TUNE_FAILING",
            )

    def _show(self, task: Task, far: str) -> None:
        if self.going.running.get(task.number) != far:
            self.going.running[task.number] = far
            self.changed(self.going)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await asyncio.to_thread(self.ledger.beat)


async def publish(mesh: Mesh, ledger: Ledger, tune: Tune, base: training_pb2.JobSpec) -> training_pb2.Job:
    """Trains the best trial's job once more, with its result recorded; the same best is published once.

    Raises NotFoundError when no trial was completed, PreconditionError when the job fails.
    """
    best = await asyncio.to_thread(ledger.best)
    spec = trial_spec(base, tune, dict(best.params), f"{tune.study}-best", discard=False)
    job = await service.submit(mesh, spec, f"{best.user_attrs.get('request', best.number)}/best")
    async for view in service.watched(mesh, job.id):
        job = view.job
    if job.state != training_pb2.JOB_STATE_SUCCEEDED:
        raise PreconditionError(
            f"job {job.id} failed: {job.error}",
            hint=f"see: aimesh train logs {job.id}; after aimesh train rm {job.id} the same command trains it again",
            reason="JOB_FAILED",
        )
    return job


def _far(view: service.View) -> str:
    """25 %, or what the job waits for."""
    if view.progress.step and view.progress.steps:
        return f"{min(1.0, view.progress.step / view.progress.steps):.0%}"
    return phase_of(view.job) or "waiting"

"""Plays what happens to a job on a mesh under load, and keeps what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil

from aimesh.training.v1 import training_pb2
from coordinator.training.record import is_over, phase_word, word
from meshkit.process import ProcessId
from tests.chaos.history import History
from tests.chaos.runner import SETTLE_S, Runner
from tests.chaos.training.history import Course, Record
from tests.chaos.training.job import SLOW_S, Pace, job
from tests.chaos.training.scenarios import Scenario
from tests.chaos.training.stage import Stage, gone
from tests.chaos.training.steps import steps_of
from tests.processes import eventually
from tools.cli import train_client
from tools.cli.upload import send_blobs

SOME_STEPS, SOME_ROUNDS = 8, 2
"""How many a job makes, and one checkpoint, before anything is done to it."""
START_S, END_S = 180.0, 180.0
SETTLED_S = 2.5
"""Longer than the leader takes to count steps that it had not heard of."""
LINGER_S = 10.0
"""How long processes may take to go when their job is over."""
LOOK_S = 0.02


class Player:
    """Disturbs one job after the other on a runner's mesh, whose load goes on meanwhile."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.mesh = runner.mesh
        self.course = Course()
        self.stage = Stage(self.mesh, runner.observer, runner.stage.clients, lambda event: runner.history.add(event))
        self._pace = Pace(self.mesh.folder / "training")
        self._seen: set[ProcessId] = set()

    async def play(self, scenario: Scenario) -> tuple[Course, History]:
        """From a mesh that is well to one that is well again: what happened to the job, and to the mesh and its load.

        Raises when something cannot be done; what happened until then is in `course` and the runner's history.
        """
        self.course = course = Course(scenario.name)
        self.runner.history = history = History(scenario.name, time.monotonic())
        self._pace.set(SLOW_S if scenario.steps else 0.0)
        for act in scenario.before:
            await self.stage.do(act)
        await self._submit(scenario)
        with self._followed():
            if scenario.steps:
                await eventually(lambda: self._under_way(scenario), within_s=START_S, what="a job under way")
                await self.stage.cast()
                history.roles, history.began = self.stage.roles, time.monotonic()
                await self._disturb(scenario)
            self._pace.set(0.0)
            await eventually(lambda: is_over(self.stage.job), within_s=END_S, what=f"the end of {self.stage.job}")
        for act in scenario.after:
            await self.stage.do(act)
        history.healed = time.monotonic()  # while a job trains, its reports make revisions
        with suppress(TimeoutError):  # the check says what was still wrong
            await self.runner.settled()
        left = await gone(self._seen | self._of_job(), LINGER_S)
        course.left = [f"process {process.pid}" for process in left]
        history.requests = await self.runner.requests(history.began, time.monotonic())
        self._complete(history)
        return course, history

    async def heal(self) -> None:
        """Undoes what one that failed has left: its job, stopped workers, deployments."""
        self._pace.set(0.0)
        await self.stage.heal()
        for model in set(self.stage.versions) & self.runner.observer.state.deployments.keys() - {"adder"}:
            await self.mesh.undeploy(model)
        if self.stage.job_id in self.runner.observer.state.jobs and not is_over(self.stage.job):
            await train_client.steer(self.mesh.target, "cancel", self.stage.job_id, "its scenario is over")
            await eventually(lambda: is_over(self.stage.job), within_s=SETTLE_S, what="a job that is cancelled")
        self._complete(self.runner.history)

    async def _submit(self, scenario: Scenario) -> None:
        name = scenario.name.replace(".", "-")[:40].strip("-")
        made = job(name, self._pace, scenario.asked)
        await send_blobs(self.mesh.target, made.paths, made.contents, lambda count: None)
        self._seen = set()
        self.stage.job_id = self.course.job = (await train_client.submit(self.mesh.target, made.spec)).id
        known = self.runner.observer.state
        await eventually(lambda: self.stage.job_id in self.runner.observer.state.jobs, what=f"the job in {known}")

    async def _disturb(self, scenario: Scenario) -> None:
        began = time.monotonic()
        for at, act in scenario.steps:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            await self.stage.do(act)
        self.course.healed = time.monotonic()
        await self.stage.do(scenario.then)

    def _under_way(self, scenario: Scenario) -> bool:
        assert not is_over(self.stage.job), f"the job is over: {self.stage.job.error}"
        some = SOME_ROUNDS if scenario.asked.federated else SOME_STEPS
        return bool(self.stage.job.checkpoint.step) and len(steps_of(self.mesh, self.stage.job_id)) >= some

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Notes the job's records and its processes meanwhile."""
        following = asyncio.create_task(self._follow())
        try:
            yield
            self._note()
        finally:
            following.cancel()

    async def _follow(self) -> None:
        while True:
            self._note()
            await asyncio.sleep(LOOK_S)

    def _note(self) -> None:
        made, records = _record(self.stage.job), self.course.records
        if not records or replace(made, at=records[-1].at) != records[-1]:
            records.append(made)
        for node in self.runner.observer.state.nodes.values():
            for status in node.report.tasks:
                if status.job == self.stage.job_id and status.pid and status.pid not in {p.pid for p in self._seen}:
                    with suppress(psutil.NoSuchProcess):
                        self._seen.add(ProcessId.of(status.pid))

    def _of_job(self) -> set[ProcessId]:
        """Processes that work in a folder of the job."""
        found = set()
        for process in psutil.process_iter(["cwd"]):
            if f"/training/{self.stage.job_id}/" in f"{process.info['cwd']}/":
                with suppress(psutil.NoSuchProcess):
                    found.add(ProcessId.of(process.pid))
        return found

    def _complete(self, history: History) -> None:
        self.course.steps = steps_of(self.mesh, self.course.job)
        self.course.events, self.course.stalls = history.events, history.stalls


def _record(found: training_pb2.Job) -> Record:
    return Record(
        at=time.monotonic(),
        state=word(found.state).upper(),
        phase=phase_word(found.phase),
        attempt=found.attempt.number,
        from_step=found.attempt.from_step,
        checkpoint=found.checkpoint.step,
        failures=found.failures,
        preemptions=found.preemptions,
        lost_steps=found.lost_steps,
        nodes=[worker.node for worker in found.attempt.workers],
        reason=found.reason,
        error=found.error,
    )

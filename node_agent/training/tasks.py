"""The training tasks of this node: what is assigned is done, what is assigned no more is ended, all of it is reported.

Level-triggered, as the models are: each Assignments holds all tasks. Processes outlive this agent when it is killed or
handed over, and the next goes on with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from meshkit.threads import uninterrupted
from node_agent.store import ModelStore
from node_agent.training.folder import Folder, TaskKey
from node_agent.training.holding import Pins
from node_agent.training.needs import digests_of
from node_agent.training.prepare import strip
from node_agent.training.retired import Keeping, Retired
from node_agent.training.state import TaskState, load_all, write
from node_agent.training.strays import end_workers
from node_agent.training.tending import GpuMemory, Tending
from node_agent.training.tools import Tools
from node_agent.training.work import TaskWork

log = structlog.get_logger()

_END_S = 5.0
"""What is assigned no more gets so long after SIGTERM."""
_SUPERSEDED_S = 0.5
"""And so long when the job goes on with another attempt, which waits for its end."""
_SWEEP_S = 30.0


class Tasks:
    """The tasks of one node."""

    def __init__(
        self,
        keeping: Keeping,
        store: ModelStore,
        tools: Callable[[Tasks], Tools],
        gpus: GpuMemory,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`tools` makes what tasks work with; `now` gives seconds since the epoch."""
        self._keeping = keeping
        self._now = now
        self._pins = Pins(store, clock)
        self._wanted: dict[TaskKey, training_pb2.TrainingTask] = {}
        self._told = False
        self._works: dict[TaskKey, TaskWork] = {}
        self._running: dict[TaskKey, asyncio.Task[None]] = {}
        self._ending: dict[TaskKey, TaskWork] = {}
        self._ends: dict[TaskKey, asyncio.Task[None]] = {}
        self._retired = Retired(keeping)
        self._group: asyncio.TaskGroup | None = None
        self._leaving = False
        self._moved = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called whenever `report` may have changed."""
        self.retention = self._retired.retention
        """Which jobs the mesh knows."""
        self._tools = tools(self)
        self._tending = Tending(gpus, self._tools.launcher.zygotes, clock)

    @property
    def root(self) -> Path:
        """Where the folders of jobs lie."""
        return self._keeping.root

    def assign(self, tasks: Iterable[training_pb2.TrainingTask]) -> None:
        """Takes what the node must do, whole. What is not listed is ended."""
        wanted = {}
        for task in tasks:
            try:
                wanted[TaskKey.of(task)] = task
            except InvalidInputError as error:
                log.warning("task.not_understood", job=task.job, reason=str(error))
        if wanted.keys() != self._wanted.keys():
            log.info("tasks.assigned", tasks=[f"{key.job}/{key.folder} {key.word}" for key in sorted(wanted)])
        self._wanted, self._told = wanted, True
        self._step()

    def report(self) -> list[training_pb2.TaskStatus]:
        """How far each task is."""
        found = []
        for _, work in sorted(self._works.items()):
            status = training_pb2.TaskStatus()
            status.CopyFrom(work.status)
            found.append(status)
        return found

    def progress(self) -> list[training_pb2.TaskProgress]:
        """How each worker goes on."""
        return [work.progress for key, work in sorted(self._works.items()) if key.kind != training_pb2.TASK_KIND_PLAN]

    def runs(self, job: str, folder: str) -> bool:
        """Whether a process of this task may still write."""
        return any((key.job, key.folder) == (job, folder) and not work.over for key, work in self._works.items())

    async def adopt(self) -> None:
        """Goes on with the tasks of the agent before, and ends processes that nobody wrote down."""
        found = await asyncio.to_thread(load_all, self.root)
        for folder, state in found:
            if state.retired_at is not None:
                self._retired.add(state)
                continue
            work = TaskWork(state, folder, self._tools)
            work.adopt()
            self._works[state.key] = work
        known = [process for _, state in found for process in state.processes.values()]
        if strays := await asyncio.to_thread(end_workers, self._keeping.data_dir, known):
            log.warning("tasks.strays_ended", pids=strays)
        self._pin()

    async def run(self) -> None:
        """Until cancelled, which leaves the processes as they are."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for key in self._works:
                    self._begin(key)
                self._step()
                group.create_task(self._tending.tend(self._works.values))
                await self._sweep_forever()
        finally:
            self._group = None
            for work in (*self._works.values(), *self._ending.values()):
                work.release()
            await self._tools.launcher.zygotes.end()

    async def leave(self, within_s: float) -> None:
        """Stops workers at a checkpoint, each in the time given, and ends all else; `run` goes on until cancelled."""
        self._leaving = True
        for work in self._works.values():
            work.ask_stop()
        busy = [work for work in self._works.values() if work.busy and work.task.kind == training_pb2.TASK_KIND_TRAIN]
        deadline_at = asyncio.get_running_loop().time() + within_s
        while any(not work.over for work in busy) and asyncio.get_running_loop().time() < deadline_at:
            self._moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_at):
                    await self._moved.wait()
        await asyncio.gather(*(work.end(_END_S) for work in self._works.values()))

    async def others_gone(self, state: TaskState) -> None:
        """Returns once what is being ended of the same job has no process that trains."""
        ends = [end for key, end in self._ends.items() if key.job == state.task.job]
        if ends:
            await asyncio.wait(ends)

    def _step(self) -> None:
        if self._group is None or not self._told or self._leaving:
            return
        for key in [key for key in self._works if key not in self._wanted]:
            work = self._works.pop(key)
            self._ending[key] = work
            self._ends[key] = self._group.create_task(self._end(key, work, self._running.pop(key, None)))
        for key, task in self._wanted.items():
            if key in self._works:
                self._works[key].update(task)
            elif key not in self._ending:  # else it is begun anew when that is over
                folder = Folder(self.root / key.job / key.folder)
                self._retired.discard(key)
                self._works[key] = TaskWork(TaskState.new(task), folder, self._tools)
                self._begin(key)
        self._pin()
        self.on_change()

    def _begin(self, key: TaskKey) -> None:
        assert self._group is not None
        self._running[key] = self._group.create_task(self._works[key].run())

    async def _end(self, key: TaskKey, work: TaskWork, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
        superseded = any(other.job == key.job for other in self._wanted)
        await work.end(_SUPERSEDED_S if superseded else _END_S)
        work.state.retired_at = self._now()
        try:
            if not any(other.folder == work.folder for other in self._works.values()):
                await uninterrupted(strip, work.folder, key.kind)
            await uninterrupted(write, work.folder, key, work.state.content())
        except OSError as error:
            log.warning("task.not_retired", job=key.job, reason=str(error))
        self._retired.add(work.state)
        del self._ending[key], self._ends[key]
        log.info("task.ended", job=key.job, attempt=key.attempt, rank=key.rank, kind=key.word)
        self._step()

    def changed(self) -> None:
        """A task has changed: other blobs are needed, and the report is another."""
        self._moved.set()
        self._pin()
        self.on_change()

    def _pin(self) -> None:
        needed: set[str] = set()
        made: set[str] = set()
        for work in (*self._works.values(), *self._ending.values()):
            made |= work.state.made()
            try:
                needed |= digests_of(work.task)
            except InvalidInputError:  # the task has failed with that
                continue
        self._pins.set(needed | made, made, self._retired.made())

    async def _sweep_forever(self) -> None:
        while True:
            await self._sweep()
            await asyncio.sleep(_SWEEP_S)

    async def _sweep(self) -> None:
        """Lets go of what nobody needs any more."""
        await self._retired.sweep({key.job for key in (*self._works, *self._ending)}, self._now())
        self._pin()

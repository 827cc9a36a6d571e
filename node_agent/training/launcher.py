"""Starts the processes of tasks."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog
from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from meshkit.failpoints import failpoint
from meshkit.files import write_atomically
from meshkit.process import ProcessId
from node_agent.training import limits
from node_agent.training.environment import Site, argv, environment
from node_agent.training.folder import Folder
from node_agent.training.zygote import Forked
from node_agent.training.zygotes import Zygotes
from node_agent.triton.logfile import LogFile
from node_agent.triton.process import TritonProcess as Process

log = structlog.get_logger()

WORKER = "training.worker"
ZYGOTE = "training.zygote"
_STATUS_S = 1.0
"""A process is seen to exit before what it was forked from tells how."""


@dataclass(frozen=True)
class Role:
    """One of the processes of a task."""

    name: str
    module: str
    """Run as `python -m`."""
    host: bool = False
    """Whether it is the one at which the workers meet."""

    @property
    def forks(self) -> bool:
        """Whether it can be forked from a process that has imported what it needs."""
        return self.module == WORKER


@dataclass
class Seat:
    """A role, and the process that has it."""

    role: Role
    folder: Folder
    log: LogFile
    process: Process | None = None
    forked: Forked | None = None
    """The same process, when it was forked."""
    group: Path | None = None
    ended: bool = False
    """Whether this agent ended it."""
    halt: limits.Halt = field(default_factory=limits.Halt)

    @property
    def gone(self) -> bool:
        """Whether there is no process, or it has exited."""
        return self.process is None or self.process.exited

    async def status(self) -> int | None:
        """How its process ended, once it has exited. Of one that was forked that is told a moment later."""
        if self.forked is not None:
            await self.forked.told_within(_STATUS_S)
        return self.process.exit_status if self.process is not None else None

    async def end(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL to its whole group after so many seconds; returns when it is dead."""
        process, self.process = self.process, None
        if process is None:
            return
        self.ended = True
        process.terminate()
        try:
            await process.exits_within(grace_s)
        finally:
            await process.kill_group()
            if self.group is not None:
                limits.leave(self.group)

    def release(self) -> None:
        """Leaves the process as it is, for the next agent."""
        if self.process is not None:
            self.process.release()
            self.process = None


@dataclass
class Launcher:
    """Starts processes as the settings say."""

    python: str
    site: Site
    nice: int
    log_bytes: int
    groups: limits.Groups
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    zygotes: Zygotes = field(default_factory=Zygotes)

    async def warm(self, task: training_pb2.TrainingTask, folder: Folder) -> None:
        """Sees to it that there is a process that this task's worker, and those after it, can be forked from.

        Raises OSError when the folder cannot be written, InvalidInputError when the task does not fit the node.
        """
        if not self.zygotes.due:
            return
        if not await asyncio.to_thread(folder.task.exists):
            await asyncio.to_thread(write_task, folder, task)
        environ = environment(task, self.site, self.environ)
        self.zygotes.start(argv(self.python, ZYGOTE, folder.path), environ, self.nice)

    def seat(self, role: Role, folder: Folder) -> Seat:
        """A place for a process."""
        return Seat(role, folder, LogFile(folder.log, self.log_bytes))

    async def start(self, seat: Seat, task: training_pb2.TrainingTask, memory_bytes: int, within_s: float) -> None:
        """Writes the task into the folder and starts the seat's process, a worker by a fork if one comes within_s.

        Raises OSError when it cannot be started, InvalidInputError when the task does not fit the node.
        """
        environ = environment(task, self.site, self.environ, host=seat.role.host)
        await asyncio.to_thread(write_task, seat.folder, task)
        name = f"{task.job}-{task.attempt}-{task.rank}-{seat.role.name}"
        seat.group = await asyncio.to_thread(self.groups.make, name, memory_bytes)
        os.close(seat.log.open())  # a worker that is forked finds it, on a full disk too
        forked = await self.zygotes.fork(seat.folder.path, environ, within_s) if seat.role.forks else None
        child = forked or _popen(argv(self.python, seat.role.module, seat.folder.path), seat, environ)
        failpoint("worker.started")
        self._take(seat, child)
        seat.forked = forked
        if forked is not None:
            forked.begin()
        log.info(
            "task.started",
            job=task.job,
            attempt=task.attempt,
            rank=task.rank,
            role=seat.role.name,
            pid=child.pid,
            forked=forked is not None,
        )

    def _take(self, seat: Seat, child: Forked | subprocess.Popen[bytes]) -> None:
        """Gives the seat a process that has just been made, and holds it back. Raises ProcessLookupError."""
        try:
            known = ProcessId.of(child.pid)
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"process {child.pid} was ended before it began") from None
        seat.process, seat.ended, seat.halt = Process(known, child), False, limits.Halt()
        if seat.group is not None and not limits.enter(seat.group, child.pid):
            seat.group = None
        limits.stand_back(child.pid, self.nice)


def _popen(command: list[str], seat: Seat, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    output = seat.log.open()
    try:
        return subprocess.Popen(
            command,
            cwd=seat.folder.path,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def write_task(folder: Folder, task: training_pb2.TrainingTask) -> None:
    """Writes task.json. Raises OSError. Blocks on the disk."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.task, json_format.MessageToJson(task).encode())


def write_go(folder: Folder, task: training_pb2.TrainingTask) -> None:
    """Writes go.json, for which a process waits that was started before. Raises OSError. Blocks on the disk."""
    write_atomically(folder.go, json_format.MessageToJson(task).encode())

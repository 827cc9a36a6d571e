"""Where things are done to jobs: roles by rank, and the processes of workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from aimesh.training.v1 import training_pb2
from coordinator.training.record import is_over, phase_word
from meshkit.process import ProcessId
from tests.chaos import stage
from tests.chaos.history import Event
from tests.chaos.mesh import Mesh
from tests.chaos.observer import Observer
from tests.chaos.training.acts import Act, Checkpointed, Flip, Phase, Trains
from tests.chaos.training.steps import steps_of
from tests.processes import eventually

WORKER = "worker:"
"""Before a node's name: the processes of the newest attempt's worker there."""


class Stage(stage.Stage):
    """Does acts on a mesh where one job is disturbed."""

    def __init__(self, mesh: Mesh, observer: Observer, clients: Iterable[str], tell: Callable[[Event], None]) -> None:
        super().__init__(mesh, observer, clients, tell)
        self.job_id = ""

    @property
    def job(self) -> training_pb2.Job:
        """Its record as etcd has it."""
        return self.observer.state.jobs[self.job_id]

    async def cast(self) -> None:
        """Gives out the roles; `rank-0` and so on are the nodes of the job's workers."""
        await super().cast()
        workers = self.job.attempt.workers if self.job_id in self.observer.state.jobs else ()
        self.roles |= {f"rank-{worker.rank}": worker.node for worker in workers}

    async def do(self, act: Act) -> None:
        """Does one act to its end. Fails when it cannot be done."""
        match act:
            case Trains():
                began = time.monotonic()
                await eventually(lambda: self._trains(act, began), within_s=act.within_s, what=f"{act}: {self.job}")
            case Phase():
                await eventually(lambda: self._is_in(act.phase), within_s=act.within_s, what=f"phase {act.phase!r}")
            case Checkpointed():
                known = self.job.checkpoint.step
                await eventually(lambda: self.job.checkpoint.step > known, within_s=act.within_s, what="a checkpoint")
            case Flip():
                self._flip(self.roles.get(act.node, act.node))
            case _:
                await super().do(act)

    def workers(self, node: str) -> list[ProcessId]:
        """The processes of the newest attempt's worker on a node, of those that run."""
        found = []
        for path in (self.mesh.data_dir(node) / "training" / self.job_id).glob(
            f"{self.job.attempt.number}-*/train.state.json"
        ):
            for pid, started in json.loads(path.read_text())["processes"].values():
                with suppress(psutil.NoSuchProcess):
                    if ProcessId.of(pid).started_as(ProcessId(pid, started)):
                        found.append(ProcessId(pid, started))
        return found

    async def heal(self) -> None:
        """Lets stopped workers go on as well."""
        await super().heal()
        for node in self.mesh.nodes if self.job_id in self.observer.state.jobs else ():
            for process in self.workers(node):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)

    async def _send(self, number: signal.Signals, targets: list[str]) -> None:
        await super()._send(number, [target for target in targets if not target.startswith(WORKER)])
        for target in targets:
            if target.startswith(WORKER):
                found = self.workers(target.removeprefix(WORKER))
                assert found, f"{target} does not run"
                for process in found:
                    os.kill(process.pid, number)

    def _named(self, targets: Iterable[str]) -> list[str]:
        found = []
        for target in targets:
            prefix = WORKER if target.startswith(WORKER) else ""
            found += [prefix + name for name in super()._named([target.removeprefix(prefix)])]
        return found

    def _trains(self, act: Trains, began: float) -> bool:
        assert not is_over(self.job), f"the job is over: {self.job.error or self.job.reason}"
        if act.workers not in (None, len(self.job.attempt.workers)):
            return False
        made = [step for step in steps_of(self.mesh, self.job_id) if step.attempt == self.job.attempt.number]
        return sum(step.at > began for step in made) >= act.steps

    def _is_in(self, phase: str) -> bool:
        return is_over(self.job) if not phase else phase_word(self.job.phase) == phase

    def _flip(self, node: str) -> None:
        """In place: every name of the file has the byte."""
        flipped = []
        for file in self.job.checkpoint.files:
            path = self.mesh.data_dir(node) / "blobs" / file.digest
            if path.exists():
                _flip_byte(path)
                flipped.append(file.path)
        assert flipped, f"{node} holds nothing of checkpoint {self.job.checkpoint.step}"
        self._tell(Event(time.monotonic(), "Flip", f"{node}: {', '.join(flipped)}", fault=False))


def _flip_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))


async def gone(processes: Iterable[ProcessId], within_s: float) -> list[ProcessId]:
    """Those of the processes that still run after so long."""
    until = time.monotonic() + within_s
    left = list(processes)
    while left and time.monotonic() < until:
        await asyncio.sleep(0.1)
        left = [process for process in left if process.alive()]
    return left

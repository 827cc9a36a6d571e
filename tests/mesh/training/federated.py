"""An aggregator and the clients of a job as real processes, without agents."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from tests.mesh.training.workers import Worker, start_process, until


@dataclass
class Job:
    """The processes of one job, all of which end with it."""

    home: Path
    task: training_pb2.TrainingTask
    started: list[Worker] = field(default_factory=list)

    def aggregate(self, number: int = 1, *, port: int = 0, resume: Path | None = None) -> Worker:
        """Starts the aggregator of an attempt; from a checkpoint's folder when there is one."""
        folder = self._folder(number, "0")
        self.task.attempt = number
        self.task.ClearField("resume")
        if resume is not None:
            self.task.resume.step = int(resume.name)
            shutil.copytree(resume, folder / "resume")
        worker = self._start("training.federated.aggregator", folder, 0, {"MASTER_PORT": str(port)})
        found = until(lambda: _ports(worker) or worker.error(), what="the aggregator's port")
        assert worker.error() is None, worker.error()
        self.task.rendezvous = f"127.0.0.1:{found[0]}"
        return worker

    def client(self, rank: int, number: int = 1) -> Worker:
        """Starts the clients of a rank."""
        return self._start("training.worker", self._folder(number, f"{rank}-client" if rank == 0 else str(rank)), rank)

    def _folder(self, number: int, name: str) -> Path:
        folder = self.home / f"{number}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _start(self, module: str, folder: Path, rank: int, environment: dict[str, str] | None = None) -> Worker:
        self.task.rank = rank
        (folder / "task.json").write_text(json_format.MessageToJson(self.task))
        worker = start_process(module, folder, environment or {})
        self.started.append(worker)
        return worker


def _ports(worker: Worker) -> list[int]:
    return [event.port for event in worker.events() if event.HasField("port")]


@contextlib.contextmanager
def job(home: Path, spec: training_pb2.JobSpec, nodes: int) -> Iterator[Job]:
    """A job on so many nodes of this machine."""
    task = training_pb2.TrainingTask(job="test", kind=training_pb2.TASK_KIND_TRAIN, go=True, spec=spec)
    task.plan.strategy = training_pb2.STRATEGY_FEDERATED
    for rank in range(nodes):
        task.workers.add(rank=rank, node=f"node-{rank}", address="127.0.0.1")
    made = Job(home, task)
    try:
        yield made
    finally:
        for worker in made.started:
            worker.process.kill()
            worker.process.join()

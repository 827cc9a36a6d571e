"""Real worker processes of a job without an agent: their folders, their rendezvous, what they said, how they ended."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2

_context = multiprocessing.get_context("forkserver")
# torch is imported once, and each worker is forked from there: a start takes 0.1 s in place of 3.
_context.set_forkserver_preload(["tests.mesh.training.preload"])


def _be(module: str, folder: str, environment: dict[str, str]) -> None:
    """What `python -m MODULE FOLDER` does, in a process that was forked."""
    os.environ.update(environment)
    log = os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
    if module == "training.federated.aggregator":
        from training.federated.aggregator import aggregate as work
    else:
        from training.worker import work
    from training.process import run

    # multiprocessing would catch what the process's own hook is to see.
    hook_seen = sys.excepthook
    try:
        run(work, [folder])
    except BaseException as error:  # noqa: BLE001 - the process says it itself
        assert sys.excepthook is not hook_seen
        sys.excepthook(type(error), error, error.__traceback__)
    os._exit(0)


@dataclass
class Worker:
    """A process and its folder."""

    folder: Path
    process: BaseProcess

    def events(self) -> list[training_pb2.WorkerEvent]:
        """All whole lines so far."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json_format.Parse(line, training_pb2.WorkerEvent()) for line in lines]

    def losses(self) -> dict[int, float]:
        """By step."""
        return {event.point.step: event.point.loss for event in self.events() if event.HasField("point")}

    def error(self) -> training_pb2.WorkerError | None:
        """What it says it ended of."""
        return next((event.error for event in self.events() if event.HasField("error")), None)

    def done(self) -> training_pb2.Done:
        """How it says it ended; fails with its log when it does not."""
        for event in self.events():
            if event.HasField("done"):
                return event.done
        raise AssertionError((self.folder / "log.txt").read_text() + str(self.error()))

    def wait(self, within_s: float = 60) -> int:
        """Its exit code."""
        self.process.join(within_s)
        assert self.process.exitcode is not None, f"{self.folder} did not end within {within_s} s"
        return self.process.exitcode


@dataclass
class Attempt:
    """The workers of one attempt."""

    workers: list[Worker]

    def finish(self, within_s: float = 60) -> list[training_pb2.Done]:
        """Waits until all have done what they should."""
        codes = [worker.wait(within_s) for worker in self.workers]
        done = [worker.done() for worker in self.workers]
        assert codes == [0] * len(codes)
        return done

    def losses(self) -> dict[int, float]:
        """Of rank 0, by step."""
        return self.workers[0].losses()

    def kill(self, rank: int) -> None:
        """Ends a worker as the kernel would."""
        pid = self.workers[rank].process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


def until(check: Callable[[], Any], within_s: float = 30, what: str = "the condition") -> Any:
    """The first true value that check gives."""
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, f"{what} did not hold within {within_s} s"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def attempt(
    home: Path,
    spec: training_pb2.JobSpec,
    strategy: training_pb2.Strategy.ValueType,
    speeds: Sequence[float] = (0,),
    *,
    number: int = 1,
    resume: training_pb2.Checkpoint | None = None,
    fill: Callable[[Path], None] = lambda folder: None,
) -> Iterator[Attempt]:
    """Starts a worker for each speed, with what `fill` puts into each folder; all are ended with the block."""
    folders = [home / f"{number}-{rank}" for rank in range(len(speeds))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        fill(folder)
    task = training_pb2.TrainingTask(
        job="test", attempt=number, kind=training_pb2.TASK_KIND_TRAIN, go=len(speeds) == 1, spec=spec, resume=resume
    )
    task.plan.strategy = strategy
    for rank, speed in enumerate(speeds):
        task.workers.add(rank=rank, node=f"node-{rank}", address="127.0.0.1", speed=speed)
    started: list[Worker] = []
    try:
        workers = [_start(folder, task, rank, started) for rank, folder in enumerate(folders)]
        if len(speeds) > 1:
            _tell_to_go(workers, task)
        yield Attempt(workers)
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.join()


def _tell_to_go(workers: Sequence[Worker], task: training_pb2.TrainingTask) -> None:
    """What agents and the leader do; of workers that end before they are ready nothing is waited for."""

    def ready(one: Worker) -> bool:
        return not one.process.is_alive() or any(event.HasField("waiting") for event in one.events())

    until(lambda: all(ready(one) for one in workers), what="that all wait")
    ports = [event.port for event in workers[0].events() if event.HasField("port")]
    task.go, task.rendezvous = True, f"127.0.0.1:{ports[0] if ports else 1}"
    for rank, one in enumerate(workers):
        task.rank = rank
        new = one.folder / "go.new"
        new.write_text(json_format.MessageToJson(task))
        new.rename(one.folder / "go.json")


def _start(folder: Path, task: training_pb2.TrainingTask, rank: int, started: list[Worker]) -> Worker:
    task.rank = rank
    (folder / "task.json").write_text(json_format.MessageToJson(task))
    started.append(_process("training.worker", folder))
    return started[-1]


def start_process(module: str, folder: Path, environment: dict[str, str]) -> Worker:
    """A process of a job, with this in its environment besides what all of a test have."""
    environment = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **environment}
    process = _context.Process(target=_be, args=(module, str(folder), environment), daemon=True)
    process.start()
    return Worker(folder, process)


def _process(module: str, folder: Path) -> Worker:
    return start_process(module, folder, {})


def gather(workers: Sequence[Worker], step: int, folders: Sequence[Path]) -> training_pb2.Checkpoint:
    """What agents do: every part of a checkpoint into the resume folder of every worker of the next attempt."""
    for worker in workers:
        source = worker.folder / "checkpoints" / str(step)
        for file in sorted(source.rglob("*")):
            if file.is_file():
                for folder in folders:
                    target = folder / "resume" / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)
                    os.link(file, target)
    return training_pb2.Checkpoint(step=step)


def shown(folder: Path) -> str:
    """A worker's own words, for a test that fails."""
    return json.dumps({path.name: path.read_text()[-2000:] for path in folder.glob("*.*")})

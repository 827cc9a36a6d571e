"""Where a task's files lie: the contract between an agent and the processes of a job.

<data_dir>/training/<job>/<attempt>-<rank>/ for a worker (with "-client" for the client beside an aggregator), and
<data_dir>/training/<job>/plan/ for planning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError

TRAINING = "training"
"""Below the agent's data directory."""
_JOB = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ATTEMPT = re.compile(r"(?P<attempt>[0-9]+)-(?P<rank>[0-9]+)(?P<client>-client)?")
_WORDS = {
    training_pb2.TASK_KIND_PLAN: "plan",
    training_pb2.TASK_KIND_TRAIN: "train",
    training_pb2.TASK_KIND_FINISH: "finish",
}


@dataclass(frozen=True, order=True)
class TaskKey:
    """Tells the tasks of a node apart."""

    job: str
    attempt: int
    rank: int
    kind: training_pb2.TaskKind.ValueType

    @classmethod
    def of(cls, task: training_pb2.TrainingTask) -> TaskKey:
        """The task's. Raises InvalidInputError when it names no job that a folder could be named after."""
        if task.kind not in _WORDS:
            raise InvalidInputError(f"a task of job {task.job!r} has the unknown kind {task.kind}")
        return cls(checked_job(task.job), task.attempt, task.rank, task.kind)

    @property
    def word(self) -> str:
        """The kind in one word."""
        return _WORDS[self.kind]

    @property
    def folder(self) -> str:
        """The folder's name below the job's."""
        return "plan" if self.kind == training_pb2.TASK_KIND_PLAN else worker_folder(self.attempt, self.rank)


@dataclass(frozen=True)
class Folder:
    """One task's files."""

    path: Path

    @property
    def task(self) -> Path:
        """The TrainingTask as proto JSON."""
        return self.path / "task.json"

    @property
    def go(self) -> Path:
        """The same once the worker, which waits for it, may train."""
        return self.path / "go.json"

    @property
    def events(self) -> Path:
        """WorkerEvents, one a line."""
        return self.path / "events.jsonl"

    @property
    def finish_events(self) -> Path:
        """The same of the process that packs the result."""
        return self.path / "finish.jsonl"

    @property
    def log(self) -> Path:
        """Standard output and error."""
        return self.path / "log.txt"

    @property
    def stop(self) -> Path:
        """Asks for a checkpoint and the end by being there."""
        return self.path / "stop"

    @property
    def checkpoints(self) -> Path:
        """A folder a step."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The result of rank 0."""
        return self.path / "export"

    @property
    def packed(self) -> Path:
        """The same as a version's files."""
        return self.path / "packed"

    @property
    def client(self) -> Folder:
        """Of the client that runs beside an aggregator."""
        return Folder(self.path.with_name(f"{self.path.name}-client"))


def worker_folder(attempt: int, rank: int) -> str:
    """The name of a worker's folder; attempt 0 is planning."""
    return f"{attempt}-{rank}" if attempt else "plan"


def numbers_of(name: str) -> tuple[int, int] | None:
    """Attempt and rank of a worker's folder by its name; None for others, such as that of a client or of planning."""
    found = _ATTEMPT.fullmatch(name)
    return (int(found["attempt"]), int(found["rank"])) if found and not found["client"] else None


def checked_job(job: str) -> str:
    """The job's id itself. Raises InvalidInputError when it is none."""
    if not _JOB.fullmatch(job):
        raise InvalidInputError(f"{job!r} is no job's id", hint="see: aimesh train list")
    return job


def checked_path(path: str, what: str) -> str:
    """A relative path that stays where it is put. Raises InvalidInputError."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InvalidInputError(f"{what} {path!r} leads out of its folder", hint="use plain relative names")
    return PurePosixPath(*parts).as_posix()

"""What an agent knows of a task, on disk beside the task's own files: for the agent that comes after."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from aimesh.training.v1 import training_pb2
from meshkit.files import write_atomically
from meshkit.process import ProcessId
from node_agent.training.folder import Folder, TaskKey
from node_agent.training.needs import blobs_of

M = TypeVar("M", bound=Message)
_ENDING = ".state.json"


@dataclass
class TaskState:
    """One task, changed as it goes on."""

    task: training_pb2.TrainingTask
    """As it was assigned last."""
    status: training_pb2.TaskStatus
    """As it is reported."""
    processes: dict[str, ProcessId] = field(default_factory=dict)
    """Those that were started and not seen to end, by role."""
    offset: int = 0
    """Bytes of the events that were dealt with."""
    written: list[training_pb2.Checkpoint] = field(default_factory=list)
    """The checkpoints of which this worker's part is held here, newest first."""
    packed: list[training_pb2.CheckpointFile] = field(default_factory=list)
    """Of FINISH: the version's files."""
    retired_at: float | None = None
    """Seconds since the epoch when it was assigned no more."""

    @classmethod
    def new(cls, task: training_pb2.TrainingTask) -> TaskState:
        """Nothing has been done."""
        status = training_pb2.TaskStatus(
            job=task.job,
            attempt=task.attempt,
            rank=task.rank,
            kind=task.kind,
            state=training_pb2.TASK_STATE_PREPARING,
        )
        return cls(task, status)

    @property
    def key(self) -> TaskKey:
        """The task's."""
        return TaskKey.of(self.task)

    def made(self) -> frozenset[str]:
        """Digests of what exists because of this task: checkpoints, its own and those held for others; the result."""
        files = [*self.packed, *self.task.copies, *self.task.resume.files]
        for checkpoint in self.written:
            files += checkpoint.files
        return blobs_of(files)

    def content(self) -> bytes:
        """As it is written down."""
        content = {
            "task": _plain(self.task),
            "status": _plain(self.status),
            "processes": {role: [each.pid, each.started] for role, each in self.processes.items()},
            "offset": self.offset,
            "written": [_plain(each) for each in self.written],
            "packed": [_plain(each) for each in self.packed],
            "retired_at": self.retired_at,
        }
        return json.dumps(content).encode()


def write(folder: Folder, key: TaskKey, content: bytes) -> None:
    """Writes a state down, one at a time. Raises OSError when the disk is full. Blocks on the disk."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.path / f"{key.word}{_ENDING}", content)


def load_all(root: Path) -> list[tuple[Folder, TaskState]]:
    """Every task that was written down below <data_dir>/training. What no agent of ours wrote is left out. Blocks."""
    found = []
    for path in sorted(root.glob(f"*/*/*{_ENDING}")):
        try:
            state = _read(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, json_format.ParseError):
            continue
        found.append((Folder(path.parent), state))
    return found


def _read(content: Any) -> TaskState:
    return TaskState(
        task=_message(content["task"], training_pb2.TrainingTask()),
        status=_message(content["status"], training_pb2.TaskStatus()),
        processes={role: ProcessId(int(pid), float(at)) for role, (pid, at) in content["processes"].items()},
        offset=int(content["offset"]),
        written=[_message(each, training_pb2.Checkpoint()) for each in content["written"]],
        packed=[_message(each, training_pb2.CheckpointFile()) for each in content["packed"]],
        retired_at=content["retired_at"],
    )


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message)


def _message(content: Any, into: M) -> M:
    return json_format.ParseDict(content, into, ignore_unknown_fields=True)

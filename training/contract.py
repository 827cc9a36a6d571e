"""The folder through which an agent and the processes of a job speak: its paths, the task in, the events out.

The agent writes `task.json` and everything to read; the process appends to `events.jsonl`. Both outlive each other. A
worker is started while its attempt is prepared, and waits for `go.json` once it has imported what it needs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError, InvalidInputError
from meshkit.files import is_full

_ROOM_LOOK_S = 0.1


@dataclass(frozen=True)
class Folder:
    """Where everything of one worker of one attempt lies."""

    root: Path

    @property
    def task(self) -> Path:
        """The TrainingTask as proto JSON, there before the process starts."""
        return self.root / "task.json"

    @property
    def go(self) -> Path:
        """The same with `go` and `rendezvous`, once all workers of the attempt are ready."""
        return self.root / "go.json"

    @property
    def events(self) -> Path:
        """WorkerEvents as proto JSON, a line each."""
        return self.root / "events.jsonl"

    @property
    def stop(self) -> Path:
        """Made by the agent: write a checkpoint and end."""
        return self.root / "stop"

    @property
    def code(self) -> Path:
        """The user's code, unpacked; on the import path."""
        return self.root / "code"

    @property
    def data(self) -> Path:
        """Uploaded shards by name."""
        return self.root / "data"

    @property
    def base(self) -> Path:
        """Files of the version that the job starts from."""
        return self.root / "base"

    @property
    def resume(self) -> Path:
        """The files of the checkpoint to go on from, of all workers that wrote it."""
        return self.root / "resume"

    @property
    def checkpoints(self) -> Path:
        """One folder a step, renamed into place when whole."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """Rank 0's result."""
        return self.root / "export"


def read_task(folder: Path) -> training_pb2.TrainingTask:
    """The task of the process whose folder it is. Raises InvalidInputError when it is missing or not understood."""
    return _read(Folder(folder).task)


def read_go(folder: Path) -> training_pb2.TrainingTask | None:
    """The task once the worker may train; None until then. Raises InvalidInputError when it is not understood."""
    path = Folder(folder).go
    return _read(path) if path.exists() else None


def _read(path: Path) -> training_pb2.TrainingTask:
    try:
        return json_format.Parse(path.read_text(), training_pb2.TrainingTask(), ignore_unknown_fields=True)
    except (OSError, json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path}: no task is to be had: {error}", hint="an agent writes it before it starts the process"
        ) from None


def stop_requested(folder: Path) -> bool:
    """Whether the agent has asked for a checkpoint and the end."""
    return Folder(folder).stop.exists()


class EventWriter:
    """Appends events for the agent, each one write of one whole line: a reader never waits for the rest of one.

    What the disk has no room for is kept and written first as soon as it has. That is never much: a job's points are
    at most some ten thousand.
    """

    def __init__(self, folder: Path) -> None:
        self._unwritten: deque[bytes] = deque()
        self._one_writes = threading.Lock()
        self._file = os.open(Folder(folder).events, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # of a process that died while it wrote
            self._unwritten.append(b"\n")

    def write(self, event: training_pb2.WorkerEvent) -> None:
        """Appends one event, with the time now unless it has one. Raises OSError, but not for a full disk."""
        if not event.HasField("at"):
            event.at.FromNanoseconds(time.time_ns())
        text = json_format.MessageToJson(event, indent=None, always_print_fields_with_no_presence=False)
        self._append(text)

    def waiting(self) -> None:
        """Says that all is imported and only `go` is missing."""
        self.write(training_pb2.WorkerEvent(waiting=True))

    def link(self, link: training_pb2.Link) -> None:
        """Says what lies between the workers."""
        self.write(training_pb2.WorkerEvent(link=link))

    def port(self, port: int) -> None:
        """Says at which port the store or the aggregator listens."""
        self.write(training_pb2.WorkerEvent(port=port))

    def point(
        self,
        step: int,
        loss: float,
        step_s: float,
        values: Mapping[str, float],
        *,
        attempt: int,
        samples_per_s: float = 0,
    ) -> None:
        """Says that a step was made. Written without protobuf's JSON: one such line a step must cost microseconds."""
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        point = {
            "step": str(step),
            "at": at,
            "loss": number(loss),
            "stepS": number(step_s),
            "values": {name: number(value) for name, value in values.items()},
            "attempt": attempt,
        }
        self._append(json.dumps({"at": at, "point": point, "samplesPerS": number(samples_per_s)}))

    def checkpoint(self, step: int, paths: Mapping[str, int], *, attempt: int, world_size: int) -> None:
        """Says that checkpoints/<step> is whole; `paths` are this worker's files with their bytes, relative to it."""
        files = [training_pb2.CheckpointFile(path=path, bytes=count) for path, count in sorted(paths.items())]
        made = training_pb2.Checkpoint(step=step, files=files, attempt=attempt, world_size=world_size)
        self.write(training_pb2.WorkerEvent(checkpoint=made))

    def no_checkpoint(self, why: str) -> None:
        """Says that one was given up for want of room on a disk."""
        self.write(training_pb2.WorkerEvent(no_checkpoint=why))

    def error(self, error: AimeshError, *, may_retry: bool) -> None:
        """Says why the process ends."""
        said = training_pb2.WorkerError(message=str(error), may_retry=may_retry, reason=error.reason)
        self.write(training_pb2.WorkerEvent(error=said))

    def done(self, step: int, values: Mapping[str, float] | None = None, *, stopped: bool = False) -> None:
        """Says that the process ends as it should, at this step."""
        self.write(training_pb2.WorkerEvent(done=training_pb2.Done(step=step, values=values, stopped=stopped)))

    def plan(self, plan: training_pb2.JobPlan) -> None:
        """Says what came out of planning."""
        self.write(training_pb2.WorkerEvent(plan=plan))

    def close(self) -> None:
        """Gives the file free. Nothing is lost without it."""
        os.close(self._file)

    def settled(self, within_s: float) -> bool:
        """Whether everything is written; waits so long for room."""
        deadline = time.monotonic() + within_s
        while not self._write() and time.monotonic() < deadline:
            time.sleep(_ROOM_LOOK_S)
        return not self._unwritten

    def _append(self, line: str) -> None:
        self._unwritten.append(line.encode() + b"\n")
        self._write()

    def _write(self) -> bool:
        """Writes what there is room for; whether that was all."""
        with self._one_writes:
            while self._unwritten:
                try:
                    written = os.write(self._file, self._unwritten[0])
                except OSError as error:
                    if not is_full(error):
                        raise
                    return False
                line = self._unwritten.popleft()
                if written < len(line):
                    self._unwritten.appendleft(line[written:])
        return True


def number(value: float) -> float | str:
    """A double as proto JSON has it: what is not finite is text."""
    if value != value:
        return "NaN"
    return {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(value, value)

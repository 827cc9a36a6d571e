"""What every process of a job does around its work: reads the task, is told to stop, says why it ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from meshkit.files import is_full
from training.contract import EventWriter, Folder, read_go, read_task, stop_requested
from training.run.disk import forgiving
from training.run.reporting import Place, explain
from training.run.watch import DEFAULT_LIMIT_S, Watch, end_stalled, stall_error

_LOOK_S = 0.02
"""Between two looks for go.json: two calls of the system."""
NO_ROOM_STATUS = errno.ENOSPC
"""Exit status when the disk has no room for a process's last word: node_agent/training/outcome.py."""
_LAST_WORD_S = 10.0
"""So long it waits for that room."""


@dataclass
class Process:
    """A process at work for a job."""

    folder: Folder
    events: EventWriter
    task: training_pb2.TrainingTask = field(default_factory=training_pb2.TrainingTask)
    place: Place = field(default_factory=Place)
    watch: Watch | None = None
    terminated: bool = False
    """Whether SIGTERM has come."""

    def stopping(self) -> bool:
        """Whether it is to write a checkpoint and end: the agent's file, or SIGTERM."""
        return self.terminated or stop_requested(self.folder.root)

    def wait_for_go(self) -> bool:
        """Says that it is ready, and waits until all workers of the attempt are. False when it is to end instead.

        A task that says go already waits for nothing. The folder of an attempt that is over may go away meanwhile.
        """
        if self.task.go:
            return True
        self.events.waiting()
        while (task := read_go(self.folder.root)) is None:
            self.seen("waiting for the other workers")
            if self.stopping() or not self.folder.task.exists():
                return False
            time.sleep(_LOOK_S)
        self.task = task
        host, colon, port = task.rendezvous.rpartition(":")
        if colon:  # for the job's own code, as every launcher of torch's sets them
            os.environ.update(MASTER_ADDR=host.strip("[]"), MASTER_PORT=port)
        return True

    def seen(self, doing: str = "") -> None:
        """Says to the watch that the code came back, and what it does next."""
        if doing:
            self.place.doing = doing
        if self.watch is not None:
            self.watch.seen()

    def terminate(self, signal_number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM."""
        self.terminated = True

    def fail(self, error: BaseException) -> None:
        """Writes the event of an error."""
        known, may_retry = explain(error, self.place, self.folder.code)
        self.events.error(known, may_retry=may_retry)

    def stalled(self, gone_s: float) -> None:
        """Writes the event of code that did not come back, and ends the process."""
        self.events.error(stall_error(gone_s, self.place, self.folder.code), may_retry=False)
        self.events.settled(_LAST_WORD_S)
        end_stalled()


def run(work: Callable[[Process], None], arguments: list[str] | None = None) -> None:
    """Does the work of a process whose argument is its folder. Whatever it raises becomes an error event and exit 1.

    After an error the process ends without its exit handlers: torch's own would wait for peers.
    """
    (given,) = sys.argv[1:] if arguments is None else arguments
    folder = Folder(Path(given).resolve())
    sys.stdout, sys.stderr = forgiving(1), forgiving(2)
    process = Process(folder, _events(folder))
    sys.excepthook = _hook(process)
    process.task = read_task(folder.root)
    limit_s = process.task.spec.stall_timeout.ToTimedelta().total_seconds() or DEFAULT_LIMIT_S
    process.watch = Watch(limit_s, process.stalled)
    process.watch.start()
    signal.signal(signal.SIGTERM, process.terminate)
    try:
        work(process)
    except SystemExit as error:
        raise InvalidInputError(
            f"{process.place}: the job's code called exit({error.code!r})", hint="let it return", reason="BAD_TRAINER"
        ) from error
    process.watch.stop()
    if not process.events.settled(_LAST_WORD_S):
        os._exit(NO_ROOM_STATUS)


def _events(folder: Folder) -> EventWriter:
    try:
        return EventWriter(folder.root)
    except OSError as error:
        if not is_full(error):
            raise
        os._exit(NO_ROOM_STATUS)


def _hook(process: Process) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        process.fail(error)
        traceback.print_exception(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if process.events.settled(_LAST_WORD_S) else NO_ROOM_STATUS)

    return hook

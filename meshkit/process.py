"""Processes told apart for good: a pid alone may be reused, a pid with its start time is not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class ProcessId:
    """A process that can be found again later, also by another program. `started` is seconds since the epoch."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this pid now. Raises psutil.NoSuchProcess."""
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether that same process still runs (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def end_group(process: ProcessId, *, grace_s: float = 5.0) -> bool:
    """Ends a process and everything in the group it leads: SIGTERM, then SIGKILL after grace_s seconds.

    Does nothing when it is gone or its pid belongs to another by now. Returns whether SIGKILL was needed. Blocks.
    """
    if not process.alive():
        return False
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        if not process.alive():
            _signal_group(process.pid, signal.SIGKILL)  # what its leader left behind
            return False
        time.sleep(0.02)
    _signal_group(process.pid, signal.SIGKILL)
    while process.alive():
        time.sleep(0.01)
    return True


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)

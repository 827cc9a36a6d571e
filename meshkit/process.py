"""Processes told apart for good: a pid alone may be reused, a pid with its start time is not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import psutil

_SAME_START_S = 0.1
"""The kernel counts in hundredths."""


@dataclass(frozen=True)
class ProcessId:
    """A process that can be found again later, also by another program.

    `started` is seconds from the machine's boot to the process's start, which a jump of the wall clock does not move.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this pid now. Raises psutil.NoSuchProcess."""
        # The kernel counts from the boot; psutil adds the boot's wall time, as the clock is now.
        return cls(pid, psutil.Process(pid).create_time() - psutil.boot_time())

    def alive(self) -> bool:
        """Whether that same process still runs (a zombie does not)."""
        try:
            return self.started_as(ProcessId.of(self.pid)) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def started_as(self, other: ProcessId) -> bool:
        """Whether the other one, of the same pid, started at the same time: then it is the same process."""
        return abs(self.started - other.started) < _SAME_START_S


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

"""A wall clock that a test can move, for a Python process that has this directory first on PYTHONPATH.

What Python code reads moves: time.time, datetime.now, and the start times of processes, which the kernel counts from
the boot and psutil adds to the boot's wall time. gRPC's core reads the machine's clock, which nobody may move here, and
Python makes its deadlines, so those callers keep it too. Libraries that move the clock below Python (libfaketime) break
the waits of native code, which a real jump does not.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path
from typing import Self

_FILE = Path(os.environ["CHAOS_CLOCK"])
_time, _time_ns = time.time, time.time_ns


def _offset() -> int:
    """Seconds that the clock is off."""
    return int(_FILE.read_text() or 0) if _FILE.exists() else 0


def _moved() -> float:
    caller = str(sys._getframe(1).f_globals.get("__name__", ""))
    return _time() + (0 if caller.partition(".")[0] == "grpc" else _offset())


def _moved_ns() -> int:
    return _time_ns() + _offset() * 10**9


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(_time() + _offset(), tz)

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time, time.time_ns = _moved, _moved_ns
datetime.datetime = _Datetime  # type: ignore[misc]

import psutil._pslinux as linux  # noqa: E402  # after the clock that it reads is the moved one

_boot_time = linux.boot_time
linux.boot_time = lambda: _boot_time() + _offset()

"""Ends a process whose code does not come back: a loop without end in a trainer would hold its nodes for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from meshkit.errors import DeadlineError
from training.run.reporting import Place

DEFAULT_LIMIT_S = 600.0
"""When the job states no stall_timeout."""


class Watch:
    """A thread that looks every `interval_s` whether `seen` was called within `limit_s`, and else calls `stalled`."""

    def __init__(self, limit_s: float, stalled: Callable[[float], None], interval_s: float = 1.0) -> None:
        self._limit_s = limit_s
        self._stalled = stalled
        self._interval_s = min(interval_s, limit_s / 4)
        self._last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def seen(self) -> None:
        """Something came back."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Ends it."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(self._interval_s):
            gone = time.monotonic() - self._last
            if gone > self._limit_s:
                self._stalled(gone)
                return


def stall_error(gone_s: float, place: Place, code: Path) -> DeadlineError:
    """What is said of code that did not come back: with the line of the user's code that the main thread is at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    at = ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(code):
            at = f" ({path.name}:{frame.f_lineno} in {frame.f_code.co_name})"
            break
        frame = frame.f_back
    return DeadlineError(
        f"{place}: nothing came back for {gone_s:.0f} s{at}",
        hint="the worker's log has every thread's stack; stall_timeout is how long a job may make no step",
        reason="STALLED",
    )


def end_stalled() -> None:
    """Prints every thread's stack to the log and ends the process at once: its main thread does not listen."""
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)

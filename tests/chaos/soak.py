"""Whether processes grow while they work: resident memory and open files, by the slope of a line through all samples.

A level says nothing: Python and Envoy keep what they once needed. A slope that goes on does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

MOST_BYTES_A_MINUTE = 512 * 1024
MOST_FILES_A_MINUTE = 1.0
"""What the slope may be at most, beyond what the scatter of the samples leaves open (two standard errors)."""


@dataclass(frozen=True)
class Sample:
    """One process at one moment. `at` is seconds."""

    at: float
    resident_bytes: int
    open_files: int


def sample(pid: int, at: float) -> Sample:
    """The process now."""
    process = psutil.Process(pid)
    return Sample(at, process.memory_info().rss, process.num_fds())


@dataclass(frozen=True)
class Slope:
    """A line's rise and its standard error, both a minute."""

    per_minute: float
    error: float

    @property
    def sure(self) -> float:
        """The rise that the samples prove, a minute."""
        return self.per_minute - 2 * self.error


def slope(times_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares. At least three samples."""
    x = np.asarray(times_s) / 60 - np.mean(times_s) / 60
    y = np.asarray(values, dtype=np.float64)
    rise = float(np.sum(x * (y - y.mean())) / np.sum(x * x))
    residual = y - y.mean() - rise * x
    error = float(np.sqrt(np.sum(residual**2) / (len(x) - 2) / np.sum(x * x)))
    return Slope(rise, error)


def growing(samples: Mapping[str, Sequence[Sample]], slack: float = 1.0) -> list[str]:
    """What is wrong, one line a process and resource; empty when nothing grows.

    `slack` multiplies what is allowed: in a short soak caches still fill.
    """
    found = []
    for name, taken in sorted(samples.items()):
        times = [one.at for one in taken]
        memory = slope(times, [one.resident_bytes for one in taken])
        files = slope(times, [one.open_files for one in taken])
        if memory.sure > slack * MOST_BYTES_A_MINUTE:
            found.append(f"{name}: resident memory rises by {memory.per_minute / 1024:.0f} KiB a minute")
        if files.sure > slack * MOST_FILES_A_MINUTE:
            found.append(f"{name}: open files rise by {files.per_minute:.1f} a minute")
    return found

"""How much of this machine others take from a mesh under test: what they take, its bars cannot ask for."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil


class Others:
    """The share of all cores that processes outside of one mesh use. The mesh's are those whose command line names its
    folder, and this one."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder).encode()
        self._cores = psutil.cpu_count() or 1
        self._ours: dict[int, bool] = {}
        self._busy, self._own, self._at = _busy_s(), self._own_s(), time.monotonic()

    def share(self) -> float:
        """Since the last call, 0 to 1."""
        busy, own, now = _busy_s(), self._own_s(), time.monotonic()
        used = (busy - self._busy) - max(0.0, own - self._own)
        share = used / (self._cores * max(now - self._at, 1e-3))
        self._busy, self._own, self._at = busy, own, now
        return min(1.0, max(0.0, share))

    def _own_s(self) -> float:
        """CPU seconds of the processes of the mesh that are alive."""
        pids = psutil.pids()
        self._ours = {pid: self._ours.get(pid, False) or self._is_ours(pid) for pid in pids}
        return sum(_cpu_s(pid) for pid, ours in self._ours.items() if ours)

    def _is_ours(self, pid: int) -> bool:
        with suppress(OSError):
            return pid == os.getpid() or self._folder in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _busy_s() -> float:
    """CPU seconds that all processes, and other machines on the same host, have used."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)

"""Holds workers back: inference comes first.

Where the agent's control group (version 2) leaves room for groups beside or below it, each worker gets one of its own,
with memory.max and a low cpu.weight. Elsewhere workers are nice, the kernel is told to end them first when memory runs
out, and the agent ends those that take more than they may.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from aimesh.training.v1 import training_pb2
from node_agent.cgroup import parse_membership, parse_stat

log = structlog.get_logger()

_WEIGHT = 10
"""Of 100, which is what others have."""
_OOM_SCORE = 500
"""Of 1000: the kernel takes workers before what has none."""
_NEEDED = {"cpu", "memory"}
STOPPED_S = 5.0
"""A process that was stopped (SIGSTOP) for so long is lost: others wait for a worker in a sum, 30 s at most."""


@dataclass(frozen=True)
class Groups:
    """Where groups of workers are made; None where they cannot be."""

    root: Path | None

    @classmethod
    def find(cls, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Groups:
        """Beside this process's group, when whatever gave it that group delegated the one above; else below it.

        The systemd unit delegates nothing, so groups take effect only where something else (a container) enabled cpu
        and memory below the agent's group.
        """
        try:
            path = parse_membership(membership.read_text()).get("", "")
        except OSError:
            return cls(None)
        if not path:
            return cls(None)
        own = root / path.lstrip("/")
        places = [own.parent, own] if own != root else [own]
        return cls(next((place for place in places if _delegated(place)), None))

    def make(self, name: str, memory_bytes: int) -> Path | None:
        """A group of that name with these limits; None where there are none, or the kernel refuses it."""
        if self.root is None:
            return None
        path = self.root / f"aimesh-{name}"
        try:
            path.mkdir(exist_ok=True)
            (path / "memory.max").write_text(str(memory_bytes))
            (path / "cpu.weight").write_text(str(_WEIGHT))
        except OSError as error:
            log.warning("task.no_group", group=str(path), reason=str(error))
            return None
        return path


def _delegated(place: Path) -> bool:
    try:
        controllers = set((place / "cgroup.subtree_control").read_text().split())
    except OSError:
        return False
    return controllers >= _NEEDED and os.access(place, os.W_OK) and os.access(place / "cgroup.procs", os.W_OK)


def enter(group: Path, pid: int) -> bool:
    """Puts a process that has just been started into a group; whether the kernel let it."""
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        log.warning("task.no_group", group=str(group), reason=str(error))
        return False
    return True


def leave(group: Path) -> None:
    """Removes the group of a worker that is gone; it stays for the next time while something is left in it."""
    with contextlib.suppress(OSError):
        group.rmdir()


def oom_kills(group: Path) -> int:
    """Processes of the group that the kernel ended for want of memory."""
    with contextlib.suppress(OSError):
        return parse_stat((group / "memory.events").read_text()).get("oom_kill", 0)
    return 0


def stand_back(pid: int, nice: int) -> None:
    """Behind Triton for the cores, and before it when memory runs out. A process that is gone already is left alone."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_SCORE))


def memory_limit(task: training_pb2.TrainingTask, node_bytes: int, share: float) -> int:
    """Bytes that a task's worker may take: what the job asks for itself, and never more than its share of the node."""
    most = int(node_bytes * share)
    return min(task.spec.resources.memory_bytes or most, most)


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it that are alive. Blocks for some milliseconds."""
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@dataclass
class Halt:
    """How long a process has been stopped (SIGSTOP), going by looks at it. One that is debugged does not count."""

    _since_s: float | None = None
    _used_s: float = 0.0

    @property
    def seen(self) -> bool:
        """Whether the last look found it stopped."""
        return self._since_s is not None

    def lasts_s(self, process: psutil.Process, now_s: float) -> float:
        """Seconds between the first of the looks that found it stopped, one after the other, and this one.

        One that used processor time in between was let go on.
        """
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                times = process.cpu_times()
                used_s = times.user + times.system
                if self._since_s is None or used_s != self._used_s:
                    self._since_s, self._used_s = now_s, used_s
                return now_s - self._since_s
        self._since_s = None
        return 0.0


def resident(processes: list[psutil.Process]) -> int:
    """Resident bytes of some processes. Pages that they share are counted for each.

    So a worker's are as many as if it had not been forked, and hold those of what it was forked from.
    """
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total

"""What the kernel's control groups allow this process, versions 1 and 2. Reads files, decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""cgroup v1 writes a number near 2**63 for no limit."""


@dataclass(frozen=True)
class CgroupLimits:
    """Limits of the group and all above it; None where there is none."""

    cpu_cores: float | None = None
    memory_bytes: int | None = None


def read_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> CgroupLimits:
    """The smallest limits on the way up from this process's groups. Unreadable files limit nothing."""
    groups = parse_membership(_read(membership))
    cores: list[float] = []
    memory: list[int] = []
    for directory in _upwards(root, groups.get("", "/")):
        cores += _quota_v2(_read(directory / "cpu.max"))
        memory += _bytes(_read(directory / "memory.max"))
    for directory in _upwards(root / "cpu", groups.get("cpu", "/")):
        cores += _quota_v1(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))
    for directory in _upwards(root / "memory", groups.get("memory", "/")):
        memory += _bytes(_read(directory / "memory.limit_in_bytes"))
    return CgroupLimits(min(cores, default=None), min(memory, default=None))


def read_memory_used(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that this process's group uses, page cache that can be dropped not counted; None where it is not told."""
    groups = parse_membership(_read(membership))
    places = (
        (root / groups.get("", "/").lstrip("/"), "memory.current", "inactive_file"),
        (root / "memory" / groups.get("memory", "/").lstrip("/"), "memory.usage_in_bytes", "total_inactive_file"),
    )
    for directory, usage, droppable in places:
        used = _bytes(_read(directory / usage))
        if used:
            return max(0, used[0] - parse_stat(_read(directory / "memory.stat")).get(droppable, 0))
    return None


def read_oom_kills(
    root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
    vmstat: Path = Path("/proc/vmstat"),
) -> int:
    """How many processes the kernel has killed for want of memory, on this machine and in this process's group.

    A number that only rises, to be compared with an earlier one; 0 where the kernel does not tell.
    """
    group = root / parse_membership(_read(membership)).get("", "/").lstrip("/")
    return sum(parse_stat(_read(path)).get("oom_kill", 0) for path in (vmstat, group / "memory.events"))


def parse_membership(text: str) -> dict[str, str]:
    """/proc/self/cgroup as controller → path; the controller of version 2 is the empty text."""
    groups = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def parse_stat(text: str) -> dict[str, int]:
    """memory.stat as name → number."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's directory and those above it; in a container the path may be the host's and not exist here."""
    directory = root / path.lstrip("/")
    while directory != root and directory.is_relative_to(root):
        yield directory
        directory = directory.parent
    yield root


def _quota_v2(text: str) -> list[float]:
    parts = text.split()
    if len(parts) != 2 or not parts[0].isdigit():
        return []  # "max 100000"
    return [int(parts[0]) / int(parts[1])]


def _quota_v1(quota: str, period: str) -> list[float]:
    if not quota.strip().isdigit() or not period.strip().isdigit():
        return []  # -1: no limit
    return [int(quota) / int(period)]


def _bytes(text: str) -> list[int]:
    number = text.strip()
    return [int(number)] if number.isdigit() and int(number) < _NO_LIMIT else []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""What this machine has to lend, and how busy it is."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aimesh.membership.v1 import membership_pb2
from node_agent.cgroup import CgroupLimits, read_limits, read_memory_used
from node_agent.gpus import GpuInventory, GpuReader
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore

_FAMILY_REFRESH_S = 5.0
"""How often Triton's child processes are looked for, which takes a walk through all processes."""


@dataclass(frozen=True)
class HostFacts:
    """What the operating system says."""

    affinity_cores: int
    """Cores that this process may run on."""
    memory_bytes: int
    disk_bytes: int
    """Size of the disk under the data directory."""
    limits: CgroupLimits

    @classmethod
    def read(cls, data_dir: Path) -> HostFacts:
        """Of this machine and process. `data_dir` must exist."""
        disk_bytes = shutil.disk_usage(data_dir).total
        return cls(len(os.sched_getaffinity(0)), psutil.virtual_memory().total, disk_bytes, read_limits())


def capacity_of(settings: AgentSettings, host: HostFacts, gpus: GpuInventory) -> membership_pb2.Capacity:
    """What the node reports: the settings' word where they have one, else the least that any limit allows."""
    cores = float(host.affinity_cores)
    if host.limits.cpu_cores is not None:
        cores = min(cores, host.limits.cpu_cores)
    memory = host.memory_bytes
    if host.limits.memory_bytes is not None:
        memory = min(memory, host.limits.memory_bytes)
    return membership_pb2.Capacity(
        cpu_cores=settings.cpu_cores or cores,
        memory_bytes=settings.memory_bytes or memory,
        disk_bytes=min(settings.disk_bytes, host.disk_bytes),
        gpus=gpus.gpus,
        gpu_error=gpus.error,
    )


@dataclass
class LoadSampler:
    """Measures load. `sample` blocks for some milliseconds: call it in a thread, never twice at once."""

    store: ModelStore
    gpus: GpuReader
    limits: CgroupLimits
    _family: list[psutil.Process] = field(default_factory=list, init=False)
    _family_of: int = field(default=0, init=False)
    _family_at: float = field(default=0.0, init=False)

    def sample(self, triton_pid: int) -> membership_pb2.Load:
        """The load since the last sample; triton_pid is 0 while there is no Triton of ours."""
        in_group = read_memory_used() if self.limits.memory_bytes is not None else None
        return membership_pb2.Load(
            cpu_utilization=min(1.0, psutil.cpu_percent(interval=None) / 100),
            memory_used_bytes=psutil.virtual_memory().used if in_group is None else in_group,
            disk_used_bytes=self.store.used_bytes(),
            gpus=self.gpus.load(),
            triton_resident_bytes=self._resident(triton_pid),
        )

    def _resident(self, pid: int) -> int:
        """Resident bytes of Triton and its stubs. Pages that they share are counted for each."""
        now = time.monotonic()
        if pid != self._family_of or now - self._family_at >= _FAMILY_REFRESH_S:
            self._family, self._family_of, self._family_at = _family(pid), pid, now
        total = 0
        for process in self._family:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                self._family_at = 0.0  # one has gone: look again next time
        return total


def _family(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid) if pid else None
        return [leader, *leader.children(recursive=True)] if leader else []
    except psutil.NoSuchProcess:
        return []

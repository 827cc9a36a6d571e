"""How big this machine is."""

from __future__ import annotations

import os

import psutil

from node_agent.cgroup import read_limits


def machine_size() -> tuple[int, float]:
    """(memory in bytes, cores) that this process may use, by the least of all limits."""
    memory, cores = psutil.virtual_memory().total, float(len(os.sched_getaffinity(0)))
    limits = read_limits()
    return min(memory, limits.memory_bytes or memory), min(cores, limits.cpu_cores or cores)

"""What processes cost: CPU time and resident memory, children included."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """User and system time so far, by name; `client` is this process."""
    spent = {name: sum(sum(each.cpu_times()[:2]) for each in tree) for name, tree in _trees(pids).items()}
    return {**spent, "client": sum(psutil.Process(os.getpid()).cpu_times()[:2])}


def resident_bytes(pids: Mapping[str, int]) -> dict[str, int]:
    """Resident memory now, by name."""
    return {name: sum(each.memory_info().rss for each in tree) for name, tree in _trees(pids).items()}


def _trees(pids: Mapping[str, int]) -> dict[str, list[psutil.Process]]:
    """Each process with its children; the agent's only child is Triton, which has a name of its own."""
    trees = {}
    for name, pid in pids.items():
        root = psutil.Process(pid)
        children = [] if name == "agent" else root.children(recursive=True)
        trees[name] = [root, *children]
    return trees

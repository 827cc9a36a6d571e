"""What memory the processes of each model have: Triton runs Python models in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from node_agent.gpus import GpuReader

_LOOK_S = 5.0
"""How often processes are looked for, which takes a walk through all of the machine."""


@dataclass(frozen=True)
class ModelMemory:
    """Of one model's processes, in bytes."""

    resident: int = 0
    gpu: int = 0


@dataclass
class MemorySampler:
    """Measures models' memory. `sample` blocks for some milliseconds: call it in a thread, never twice at once."""

    repository: Path
    gpus: GpuReader
    _family: list[tuple[psutil.Process, str]] = field(default_factory=list, init=False)
    _family_of: int = field(default=0, init=False)
    _family_at: float = field(default=0.0, init=False)

    def sample(self, triton_pid: int, leaving: Collection[int]) -> Mapping[str, ModelMemory]:
        """By model. Processes with the pids in `leaving` are of versions that were replaced, and not counted."""
        now = time.monotonic()
        if triton_pid != self._family_of or now - self._family_at >= _LOOK_S:
            self._family, self._family_of, self._family_at = self._find(triton_pid), triton_pid, now
        on_gpu = self.gpus.by_process() if self._family else {}
        found: dict[str, ModelMemory] = {}
        for process, name in self._family:
            if process.pid in leaving:
                continue
            try:
                resident = process.memory_info().rss
            except psutil.Error:
                self._family_at = 0.0  # one has gone: look again next time
                continue
            held = found.get(name, ModelMemory())
            found[name] = ModelMemory(held.resident + resident, held.gpu + on_gpu.get(process.pid, 0))
        return found

    def _find(self, triton_pid: int) -> list[tuple[psutil.Process, str]]:
        """Triton's processes that run a model of the repository, with its name."""
        try:
            children = psutil.Process(triton_pid).children(recursive=True) if triton_pid else []
        except psutil.NoSuchProcess:
            return []
        return [(child, name) for child in children if (name := self._model_of(child))]

    def _model_of(self, process: psutil.Process) -> str:
        try:
            arguments = process.cmdline()
        except psutil.Error:
            return ""
        below = f"{self.repository}/"
        scripts = [each for each in arguments if each.startswith(below) and each.endswith("/1/model.py")]
        return scripts[0][len(below) :].partition("/")[0] if scripts else ""

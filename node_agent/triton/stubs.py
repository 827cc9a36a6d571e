"""Tells when a process that runs a Python model dies.

Triton itself does not: it goes on calling the model READY and fails each of its requests after a second.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil


class StubWatch:
    """Watches the stubs of the models in `repository`; `died(name)` is called in the event loop, within milliseconds.

    Used in one event loop only.
    """

    def __init__(self, repository: Path, died: Callable[[str], None]) -> None:
        self._repository = repository
        self._died = died
        self._watched: defaultdict[str, list[int]] = defaultdict(list)

    def find(self, triton_pid: int, name: str) -> frozenset[int]:
        """Pids of a model's stubs below Triton; none when Triton is not a process of this machine. Blocks."""
        script = str(self._repository / name / "1" / "model.py")
        try:
            children = psutil.Process(triton_pid).children(recursive=True) if triton_pid else []
        except psutil.NoSuchProcess:
            return frozenset()
        return frozenset(child.pid for child in children if script in _arguments(child))

    def watch(self, name: str, pids: Iterable[int]) -> None:
        """Watches these processes of a model until they die or are forgotten."""
        loop = asyncio.get_running_loop()
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self._died(name)
                return
            self._watched[name].append(descriptor)
            loop.add_reader(descriptor, self._on_death, name)

    def forget(self, name: str) -> None:
        """Stops watching a model: its processes are about to go."""
        loop = asyncio.get_running_loop()
        for descriptor in self._watched.pop(name, []):
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Forgets all."""
        for name in list(self._watched):
            self.forget(name)

    def _on_death(self, name: str) -> None:
        self.forget(name)
        self._died(name)


def _arguments(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):  # gone, or a zombie, which has none
        return process.cmdline()
    return []

"""Tells when a process that runs a Python model dies.

Triton itself does not: it goes on calling the model READY and fails each of its requests after a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import structlog

from meshkit.process import ProcessId

log = structlog.get_logger()

_EXIT_POLL_S = 0.05


class StubWatch:
    """Watches the stubs of the models in `repository`; `died(name)` is called in the event loop, within milliseconds.

    Used in one event loop only.
    """

    def __init__(self, repository: Path, died: Callable[[str], None]) -> None:
        self._repository = repository
        self._died = died
        self._watched: defaultdict[str, list[int]] = defaultdict(list)
        self._condemned: dict[ProcessId, float] = {}

    def find(self, triton_pid: int, name: str) -> frozenset[ProcessId]:
        """A model's stubs below Triton; none when Triton is not a process of this machine. Blocks."""
        script = str(self._repository / name / "1" / "model.py")
        try:
            children = psutil.Process(triton_pid).children(recursive=True) if triton_pid else []
        except psutil.NoSuchProcess:
            return frozenset()
        return frozenset(stub for child in children if (stub := _runs(child, script)) is not None)

    def end(self, processes: Collection[ProcessId], patience_s: float) -> None:
        """Waits until these processes have exited, and kills those that have not within patience_s seconds.

        Triton can keep a request for ever whose client went away just as its last response came, and with it the stub
        of a model that was unloaded (triton-inference-server/server#7626). Blocks.
        """
        deadline = time.monotonic() + patience_s
        while any(process.alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(_EXIT_POLL_S)
        for process in processes:
            if (descriptor := _open(process)) is not None:
                log.warning("stub.killed", pid=process.pid, reason=f"it did not exit within {patience_s:g} s")
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                os.close(descriptor)

    def watch(self, name: str, processes: Iterable[ProcessId]) -> None:
        """Watches these processes of a model until they die or are forgotten."""
        loop = asyncio.get_running_loop()
        for process in processes:
            descriptor = _open(process)
            if descriptor is None:
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

    def condemn(self, processes: Iterable[ProcessId], patience_s: float) -> None:
        """These are of no use any more: `reap` ends those that are still there in patience_s seconds."""
        until = time.monotonic() + patience_s
        self._condemned.update(dict.fromkeys(processes, until))

    @property
    def condemned(self) -> frozenset[ProcessId]:
        """Those that `reap` will end."""
        return frozenset(self._condemned)

    def reap(self) -> None:
        """Kills the condemned whose time has come. Blocks for some milliseconds."""
        due = [process for process, until in list(self._condemned.items()) if time.monotonic() >= until]
        for process in due:
            del self._condemned[process]
        self.end(due, 0.0)

    def close(self) -> None:
        """Forgets all."""
        for name in list(self._watched):
            self.forget(name)

    def _on_death(self, name: str) -> None:
        self.forget(name)
        self._died(name)


def _open(process: ProcessId) -> int | None:
    """A descriptor of this process and no other that has its pid by now; None when it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.alive():  # asked once the descriptor is held: it was this process all the time
        return descriptor
    os.close(descriptor)
    return None


def _runs(process: psutil.Process, script: str) -> ProcessId | None:
    with suppress(psutil.Error):  # gone, or a zombie, which has no arguments
        known = ProcessId.of(process.pid)  # first, so that what is seen next is of no successor
        if script in process.cmdline():
            return known
    return None

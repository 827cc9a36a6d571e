"""A Triton process, started by this agent or the one before: watched by descriptor, so that no pid is mistaken."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from meshkit.process import ProcessId
from node_agent.triton.leftover import kill_group


class Child(Protocol):
    """A process whose exit status this one is told: its own (subprocess.Popen), or one that another forked for it."""

    @property
    def returncode(self) -> int | None:
        """Negative for a signal; None while it is not known."""

    def poll(self) -> int | None:
        """The same, looked for anew. Does not block."""


class TritonProcess:
    """Leads a process group of its own. Used in one event loop; `release` or `kill_group` ends its use."""

    def __init__(self, known: ProcessId, child: Child | None = None) -> None:
        """Raises ProcessLookupError when that process is gone. `child` is None when another agent started it."""
        self.id = known
        self._child = child
        self._descriptor = os.pidfd_open(known.pid)
        self._exited = asyncio.Event()
        if child is None and not known.alive():  # asked once the descriptor is held
            os.close(self._descriptor)
            raise ProcessLookupError(f"process {known.pid} is gone")
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_exit)

    @classmethod
    def start(cls, argv: Sequence[str], env: Mapping[str, str], output: int) -> TritonProcess:
        """A new process whose output goes to a descriptor. Raises OSError when it cannot be started."""
        child = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        # Not reaped before this object looks, so its pid is its own and its start can be read.
        return cls(ProcessId.of(child.pid), child)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.id.pid

    @property
    def adopted(self) -> bool:
        """Whether another agent started it."""
        return self._child is None

    @property
    def exit_status(self) -> int | None:
        """As subprocess has it, negative for a signal; None while it runs, and always when it was adopted."""
        return self._child.returncode if self._child is not None else None

    @property
    def exited(self) -> bool:
        """Whether it has exited, as far as this object has seen."""
        return self._exited.is_set()

    async def wait(self) -> None:
        """Until it has exited."""
        await self._exited.wait()

    async def exits_within(self, seconds: float) -> bool:
        """Waits so long; whether it has exited."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return self._exited.is_set()

    def terminate(self) -> None:
        """SIGTERM to Triton itself; it ends its stubs."""
        if not self._exited.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it alone; from any thread."""
        with suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def kill_group(self) -> None:
        """SIGKILL to what is left of its group (stubs outlive a Triton that was killed); returns when it is dead."""
        kill_group(self.id)
        await self._exited.wait()
        self.release()

    def release(self) -> None:
        """Leaves the process as it is."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        if self._child is not None:
            self._child.poll()
        self._exited.set()

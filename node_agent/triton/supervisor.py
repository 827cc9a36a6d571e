"""A Triton that the agent starts, watches, starts again and stops."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import structlog

from aimesh.membership.v1 import membership_pb2
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, DeadlineError, UnavailableError
from meshkit.process import ProcessId
from node_agent.settings import AgentSettings
from node_agent.triton import launch, leftover
from node_agent.triton.client import CONTROL_TIMEOUT_S
from node_agent.triton.crashes import CrashCounter
from node_agent.triton.logfile import LogFile
from node_agent.triton.selftest import run_selftest
from node_agent.triton.server import CRASH_LOOP, READY, STARTING, STOPPING, InferenceServer

log = structlog.get_logger()

_READY_POLL_S = 0.05
_WATCH_POLL_S = 1.0
_EXIT_NOTICE_S = 0.5
"""A connection that broke is often a Triton that died, whose exit status says more."""
_EXIT_MARGIN_S = 5.0
"""What Triton gets beyond its own exit timeout before it is killed."""


class ManagedTriton(InferenceServer):
    """Triton as the agent's child, in a process group of its own, its log in <data_dir>/log/triton.log."""

    def __init__(self, settings: AgentSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir, f"{_reachable(settings.triton.listen)}:{settings.triton.grpc_port}")
        self._triton = settings.triton
        self._log = LogFile(data_dir / "log" / "triton.log", settings.triton.log_bytes)
        self._crashes = CrashCounter(settings.triton.crash_limit, settings.triton.crash_window_s)
        self._backoff = Backoff(first_s=0.2, most_s=5.0)
        self._log_mark = 0
        self._ready_at: float | None = None

    async def run(self) -> None:
        """Keeps a Triton running until stopped."""
        killed = await asyncio.to_thread(leftover.end_leftovers, self.data_dir)
        if killed:
            log.warning("triton.leftover_killed", pids=killed)
        try:
            while not self._stop.is_set():
                try:
                    await self._run_once()
                except (AimeshError, OSError) as error:
                    await self._pause_after(str(error))
        finally:
            await self.client.close()

    async def _run_once(self) -> None:
        """One Triton from start to end. Raises with the reason unless it ended because it was asked to."""
        self._ready_at = None
        self._set(state=self._down_state())
        launch.check_ports(self._triton)
        self._log_mark = self._log.size()
        async with self._child() as process:
            try:
                await _first(process.wait(), self._serve(process.pid), self._stop.wait())
            except UnavailableError:
                if not await _exits_within(process, _EXIT_NOTICE_S):
                    raise
            if self._stop.is_set():
                await self._end_gracefully(process)
                return
            self._set(state=self._down_state(), pid=0)  # before the stubs are killed, which are watched
            raise UnavailableError(_obituary(process.returncode, self._log.last_error(self._log_mark)))

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """A started Triton; its whole process group is gone when this is left."""
        files = launch.find_files(self._triton)
        backends = await asyncio.to_thread(launch.prepare_backends, files, self.data_dir / "triton" / "backends")
        self.repository.mkdir(parents=True, exist_ok=True)
        argv = launch.command(
            self._triton, files.server, backends, self.data_dir, self.settings.drain_s, self.settings.node_id
        )
        output = self._log.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=launch.environment(os.environ, files.libraries),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        try:
            with suppress(psutil.NoSuchProcess):  # it may be dead already, and waited for
                leftover.remember(self.data_dir, ProcessId.of(process.pid))
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the stubs too, which outlive a Triton that was killed
            await process.wait()
            await asyncio.to_thread(leftover.end_leftovers, self.data_dir)

    async def _serve(self, pid: int) -> None:
        """Waits until Triton is ready, then watches it. Returns never."""
        self._set(pid=pid)
        try:
            async with asyncio.timeout(self._triton.start_timeout_s):
                await self._until_live()
                version = await self.client.version()
                await run_selftest(self.client, self.repository)
        except TimeoutError:
            raise DeadlineError(f"Triton was not ready within {self._triton.start_timeout_s:g} s") from None
        self._log_mark = self._log.size()  # Triton complains at each start of what it does well without
        self._ready_at = time.monotonic()
        self._set(state=READY, generation=self.status.generation + 1, version=version, message="")
        await self._watch()

    async def _until_live(self) -> None:
        while True:
            if await self.client.live(timeout_s=1.0):
                return
            await asyncio.sleep(_READY_POLL_S)

    async def _watch(self) -> None:
        silent_since: float | None = None
        while True:
            await asyncio.sleep(_WATCH_POLL_S)
            await asyncio.to_thread(self._log.rotate)
            if await self.client.live(min(CONTROL_TIMEOUT_S, self._triton.hang_timeout_s)):
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since >= self._triton.hang_timeout_s:
                raise UnavailableError(f"Triton gave no sign of life for {self._triton.hang_timeout_s:g} s")

    async def _pause_after(self, reason: str) -> None:
        """Says what happened and waits before the next start; less long when asked to stop."""
        now = time.monotonic()
        failures = self._crashes.add(now, 0.0 if self._ready_at is None else now - self._ready_at)
        looping = self._crashes.looping
        log.error("triton.down", reason=reason, failures=failures, crash_loop=looping)
        self._set(state=self._down_state(), pid=0, message=reason)
        if failures == 1:
            self._backoff.reset()
        pause_s = self._triton.crash_pause_s if looping else self._backoff.next_delay()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stop.wait()

    def _down_state(self) -> membership_pb2.TritonState.ValueType:
        return CRASH_LOOP if self._crashes.looping else STARTING

    async def _end_gracefully(self, process: asyncio.subprocess.Process) -> None:
        """SIGTERM makes Triton refuse new requests and finish those it has, within its exit timeout.

        One that was not ready yet has no requests, and would not heed the signal: it is killed.
        """
        self._set(state=STOPPING)
        if self._ready_at is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        if not await _exits_within(process, self.settings.drain_s + _EXIT_MARGIN_S):
            log.warning("triton.killed", reason="it did not exit in time", pid=process.pid)


async def _first(*work: Coroutine[Any, Any, Any]) -> None:
    """Runs all until the first ends, then cancels the others. Raises what it raised."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _exits_within(process: asyncio.subprocess.Process, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _obituary(returncode: int | None, last_error: str) -> str:
    if returncode is not None and returncode < 0:
        what = f"Triton was killed by {signal.Signals(-returncode).name}"
    else:
        what = f"Triton exited with status {returncode}"
    return f"{what}: {last_error}" if last_error else what


def _reachable(listen: str) -> str:
    """The address to call a server on that listens on `listen`."""
    if listen in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{listen}]" if ":" in listen else listen

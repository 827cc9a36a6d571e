"""A Triton that the agent starts or adopts, watches, starts again, and stops or hands over."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from aimesh.membership.v1 import membership_pb2
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, DeadlineError, PreconditionError, UnavailableError
from meshkit.failpoints import failpoint
from node_agent.certificates import Validity, restart_at, spread_of
from node_agent.quiet import until_quiet
from node_agent.settings import AgentSettings
from node_agent.triton import launch, leftover
from node_agent.triton.crashes import CrashCounter
from node_agent.triton.logfile import LogFile
from node_agent.triton.process import TritonProcess
from node_agent.triton.record import TritonRecord, read_record, write_record
from node_agent.triton.selftest import run_selftest
from node_agent.triton.server import CRASH_LOOP, READY, STARTING, STOPPING, InferenceServer
from node_agent.waiting import first

log = structlog.get_logger()

_READY_POLL_S = 0.05
_WATCH_POLL_S = 1.0
_SILENT_POLL_S = 0.2
"""Between checks while Triton does not answer."""
_CHECK_S = 1.0
"""Deadline of a health check."""
_MISSED_CHECKS = 3
"""So many missed in a row take it out of the routes."""
_ADOPT_LIVE_S = 10.0
"""How long a Triton that may be adopted may take for its first answer: the machine may be busy, and it serves."""
_EXIT_NOTICE_S = 0.5
"""A connection that broke is often a Triton that died, whose exit status says more."""
_EXIT_MARGIN_S = 5.0
"""What Triton gets beyond its own exit timeout before it is killed."""


class ManagedTriton(InferenceServer):
    """Triton in a process group of its own, its log in <data_dir>/log/triton.log. Outlives an agent that is killed."""

    def __init__(
        self, settings: AgentSettings, data_dir: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        super().__init__(settings, data_dir, f"{_reachable(settings.triton.listen)}:{settings.triton.grpc_port}")
        self.now = now
        """The time of day, which certificates go by."""
        self._triton = settings.triton
        self._log = LogFile(data_dir / "log" / "triton.log", settings.triton.log_bytes)
        self._crashes = CrashCounter(settings.triton.crash_limit, settings.triton.crash_window_s)
        self._backoff = Backoff(first_s=0.2, most_s=5.0)
        self._log_mark = 0
        self._ready_at: float | None = None
        self._adopted: TritonProcess | None = None
        self._certificate = b""
        """In PEM, the one that the running Triton shows; empty without TLS."""
        self._restart_at: datetime | None = None
        """When it is to be started anew for a renewed certificate; None while it has the newest."""
        self._rotates = True

    async def adopt(self) -> bool:
        """Goes on with the Triton of the agent before, when that is ready and just what this agent would start.

        Any other that it left is ended.
        """
        adopted = await self._try_to_adopt()
        if not adopted:
            await self._end_leftovers()
        return adopted

    async def _end_leftovers(self) -> None:
        killed = await asyncio.to_thread(leftover.end_leftovers, self.data_dir)
        if killed:
            log.warning("triton.leftover_killed", pids=killed)

    async def _try_to_adopt(self) -> bool:
        record = await asyncio.to_thread(self._adoptable)
        if record is None:
            return False
        try:
            process = TritonProcess(record.process)
        except ProcessLookupError:
            return False
        self.client.secret = record.secret
        try:
            version = await self._prove(_ADOPT_LIVE_S, self._triton.start_timeout_s)
        except (AimeshError, OSError) as error:
            log.warning("triton.not_adopted", pid=process.pid, reason=str(error))
            process.release()
            return False
        self._adopted, self._certificate = process, record.certificate.encode()
        log.info("triton.adopted", pid=process.pid, version=version)
        self._now_ready(process, version)
        return True

    async def run(self) -> None:
        """Keeps a Triton running until stopped or handed over."""
        if self._adopted is None:
            await self._end_leftovers()
        try:
            while not self._stop.is_set() and not self._handed_over.is_set():
                try:
                    await self._run_once()
                except (AimeshError, OSError) as error:
                    await self._pause_after(str(error))
        finally:
            await self.client.close()

    async def certificate_changed(self) -> None:
        """Calls use it at once, Triton when it is started anew, which is planned here. Raises PreconditionError."""
        await super().certificate_changed()
        self._plan_restart()

    async def _run_once(self) -> None:
        """One Triton to its end, or until it is handed over. Raises with the reason unless this agent ended it."""
        process, self._adopted = self._adopted, None
        if process is None:
            self._ready_at = None
            self._set(state=self._down_state(), silent=False)
            launch.check_ports(self.settings)
            self._log_mark = self._log.size()
            process = await self._start()
        kept = True  # also when this task is cancelled: who kills an agent does not mean its Triton
        try:
            kept = await self._attend(process)
        except Exception:
            kept = False
            raise
        finally:
            if kept:
                process.release()
            else:
                await self._bury(process)

    async def _attend(self, process: TritonProcess) -> bool:
        """Until there is nothing more to do for it; whether it is to go on. Raises when it is broken or dead."""
        try:
            await first(process.wait(), self._serve(process), self._stop.wait(), self._handed_over.wait())
        except UnavailableError:
            if not await process.exits_within(_EXIT_NOTICE_S):
                raise
        if await process.exits_within(0):
            if self._stop.is_set():
                return False
            self._set(state=self._down_state(), pid=0, silent=False)  # before the stubs are killed, which are watched
            raise UnavailableError(
                _obituary(process.exit_status, self._log.last_error(self._log_mark), adopted=process.adopted)
            )
        if self._handed_over.is_set():
            log.info("triton.handed_over", pid=process.pid)
            return True
        if self._stop.is_set():
            self._set(state=STOPPING)
        await self._end_gracefully(process)
        return False

    async def _start(self) -> TritonProcess:
        """A Triton of our own. When this raises, nothing of it is left."""
        files = launch.find_files(self._triton)
        backends = await asyncio.to_thread(launch.prepare_backends, files, self.data_dir / "triton" / "backends")
        fingerprint = await asyncio.to_thread(launch.fingerprint, self.settings, files, os.environ)
        self.repository.mkdir(parents=True, exist_ok=True)
        self._certificate = self.settings.tls.read()[1]
        self.client.secret = secrets.token_hex(16)
        argv = launch.command(self.settings, files.server, backends, self.client.secret)
        output = self._log.open()
        try:
            process = TritonProcess.start(argv, launch.environment(os.environ, files.libraries), output)
        finally:
            os.close(output)
        try:
            failpoint("triton.started")
            self._remember(process, fingerprint)
        except BaseException:
            await self._bury(process)
            raise
        return process

    def _remember(self, process: TritonProcess, fingerprint: str) -> None:
        record = TritonRecord(process.id, fingerprint, self.client.secret, self._certificate.decode())
        try:
            write_record(self.data_dir, record)
        except OSError as error:  # a full disk must not end what needs no disk
            log.warning("triton.not_remembered", reason=str(error), effect="the next agent will start another")

    def _adoptable(self) -> TritonRecord | None:
        """What the agent before wrote down, when its Triton was started as this agent would start one. Blocks."""
        record = read_record(self.data_dir)
        if record is None or not record.fingerprint or not record.process.alive():
            return None
        if record.fingerprint != launch.fingerprint(self.settings, launch.find_files(self._triton), os.environ):
            log.warning(
                "triton.not_adopted", pid=record.process.pid, reason="it was started with other settings or files"
            )
            return None
        return record

    async def _bury(self, process: TritonProcess) -> None:
        await process.kill_group()  # the stubs too
        await asyncio.to_thread(leftover.end_leftovers, self.data_dir)

    async def _serve(self, process: TritonProcess) -> None:
        """Waits until Triton is ready, then watches it. Returns when it is to be started anew."""
        if not process.adopted:
            self._set(pid=process.pid)
            version = await self._prove(self._triton.start_timeout_s, self._triton.start_timeout_s)
            self._now_ready(process, version)
        await self._watch()

    async def _prove(self, live_within_s: float, within_s: float) -> str:
        """Waits until it answers and its answers are right; gives its version. Raises DeadlineError and others."""
        try:
            async with asyncio.timeout(within_s):
                async with asyncio.timeout(live_within_s):
                    await self._until_live()
                version = await self.client.version()
                await run_selftest(self.client, self.repository)
        except TimeoutError:
            raise DeadlineError(f"Triton was not ready within {within_s:g} s") from None
        return version

    async def _until_live(self) -> None:
        while True:
            if await self.client.live(timeout_s=1.0):
                return
            await asyncio.sleep(_READY_POLL_S)

    def _now_ready(self, process: TritonProcess, version: str) -> None:
        self._log_mark = self._log.size()  # Triton complains at each start of what it does well without
        self._ready_at = time.monotonic()
        generation = self.status.generation + 1
        self._set(state=READY, pid=process.pid, generation=generation, version=version, message="", silent=False)
        self._plan_restart()

    def _plan_restart(self) -> None:
        """Compares the certificate that runs with the one on the disk; says so when they differ."""
        try:
            newest = self.settings.tls.read()[1]
        except PreconditionError as error:  # being replaced at this moment: `certificate_changed` follows
            log.info("triton.certificate_unknown", reason=error.message)
            return
        self._restart_at = None
        if newest != self._certificate:
            self._restart_at = restart_at(Validity.of(self._certificate), spread_of(self.settings.node_id))
            log.info("triton.restart_planned", at=self._restart_at.isoformat(timespec="seconds"))
        if self.status.ready:
            self._set(message=self._plan())

    def _plan(self) -> str:
        if self._restart_at is None:
            return ""
        at = self._restart_at.isoformat(timespec="minutes")
        return f"shows its certificate from before the renewal until it is started anew, at {at} or earlier"

    async def _watch(self) -> None:
        """Returns when a restart is due. Raises UnavailableError when it was silent for too long."""
        missed, silent_since = 0, time.monotonic()
        while True:
            await asyncio.sleep(_SILENT_POLL_S if missed else _WATCH_POLL_S)
            await asyncio.to_thread(self._rotate_log)
            asked = time.monotonic()
            if await self.client.live(min(_CHECK_S, self._triton.hang_timeout_s)):
                missed = 0
                self._set(state=READY, silent=False, message=self._plan())
                if self._restart_at is not None and self.now() >= self._restart_at:
                    await self._prepare_restart()
                    return
                continue
            missed, silent_since = missed + 1, silent_since if missed else asked
            if time.monotonic() - silent_since >= self._triton.hang_timeout_s:
                raise UnavailableError(f"Triton gave no sign of life for {self._triton.hang_timeout_s:g} s")
            if missed >= _MISSED_CHECKS:
                self._set(state=STARTING, silent=True, message="Triton runs and does not answer")

    async def _prepare_restart(self) -> None:
        """Takes the node out of the routes and waits until clients ask no more."""
        self._set(state=STARTING, message="Triton is started anew for its renewed certificate")
        await until_quiet(self.client, self.settings.drain_s)

    def _rotate_log(self) -> None:
        try:
            self._log.rotate()
            self._rotates = True
        except OSError as error:  # a full disk is no reason to end Triton
            if self._rotates:
                log.warning("triton.log_not_rotated", reason=str(error))
            self._rotates = False

    async def _pause_after(self, reason: str) -> None:
        """Says what happened and waits before the next start; less long when asked to stop."""
        now = time.monotonic()
        failures = self._crashes.add(now, 0.0 if self._ready_at is None else now - self._ready_at)
        looping = self._crashes.looping
        log.error("triton.down", reason=reason, failures=failures, crash_loop=looping)
        self._set(state=self._down_state(), pid=0, message=reason, silent=False)
        if failures == 1:
            self._backoff.reset()
        pause_s = self._triton.crash_pause_s if looping else self._backoff.next_delay()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await first(self._stop.wait(), self._handed_over.wait())

    def _down_state(self) -> membership_pb2.TritonState.ValueType:
        return CRASH_LOOP if self._crashes.looping else STARTING

    async def _end_gracefully(self, process: TritonProcess) -> None:
        """SIGTERM makes Triton refuse new requests and finish those it has, within its exit timeout.

        One that was not ready yet has no requests, and would not heed the signal: it is killed.
        """
        if self._ready_at is None:
            return
        process.terminate()
        if not await process.exits_within(self.settings.drain_s + _EXIT_MARGIN_S):
            log.warning("triton.killed", reason="it did not exit in time", pid=process.pid)


def _obituary(status: int | None, last_error: str, *, adopted: bool) -> str:
    if adopted:
        what = "Triton exited, with a status that only the agent that started it could have seen"
    elif status is not None and status < 0:
        what = f"Triton was killed by {signal.Signals(-status).name}"
    else:
        what = f"Triton exited with status {status}"
    return f"{what}: {last_error}" if last_error else what


def _reachable(listen: str) -> str:
    """The address to call a server on that listens on `listen`."""
    if listen in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{listen}]" if ":" in listen else listen

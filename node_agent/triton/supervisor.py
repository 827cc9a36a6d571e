"""A Triton that the agent starts or adopts, watches, starts again, and stops or hands over."""

from __future__ import annotations

import asyncio
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
from node_agent.certificates import Plan, Shown, plan_restart, spread_of
from node_agent.quiet import until_quiet
from node_agent.settings import AgentSettings
from node_agent.triton import launch
from node_agent.triton.crashes import CrashCounter
from node_agent.triton.logfile import LogFile
from node_agent.triton.process import TritonProcess
from node_agent.triton.selftest import run_selftest
from node_agent.triton.server import CRASH_LOOP, READY, STARTING, STOPPING, InferenceServer
from node_agent.triton.starter import EXIT_MARGIN_S, Started, Starter
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


_EARLY_S = 10.0
"""One that died within so many seconds of being ready may have died of a model that it was started with."""
_BARE_PAUSE_S = 2.0
"""Least pause before a start without models: until clients have left, a closed port sends them elsewhere, and a Triton
that knows no model would refuse them."""


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
        self._starter = Starter(settings, data_dir, self._log)
        self._crashes = CrashCounter(settings.triton.crash_limit, settings.triton.crash_window_s)
        self._backoff = Backoff(first_s=0.2, most_s=5.0)
        self._log_mark = 0
        self._ready_at: float | None = None
        self._adopted: Started | None = None
        self._begun = False
        """This agent started the Triton that it attends to."""
        self._bare = False
        """The next is started without models: the last may have died of them."""
        self._shown = Shown()
        """What the running Triton read as it started."""
        self._plan = Plan()
        """When it is started anew for what is on the disk by now."""
        self._rotates = True

    async def adopt(self) -> bool:
        """Goes on with the Triton of the agent before, when that is ready and just what this agent would start.

        Any other that it left is ended.
        """
        adopted = await self._try_to_adopt()
        if not adopted:
            await self._starter.end_leftovers()
        return adopted

    async def _try_to_adopt(self) -> bool:
        left = await self._starter.find_left()
        if left is None:
            return False
        self.client.secret = left.secret
        try:
            version = await self._prove(_ADOPT_LIVE_S, self._triton.start_timeout_s)
        except (AimeshError, OSError) as error:
            log.warning("triton.not_adopted", pid=left.process.pid, reason=str(error))
            left.process.release()
            return False
        self._adopted = left
        log.info("triton.adopted", pid=left.process.pid, version=version)
        self._now_ready(left, version)
        return True

    async def run(self) -> None:
        """Keeps a Triton running until stopped or handed over."""
        if self._adopted is None:
            await self._starter.end_leftovers()
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
        self._plan_restart(agent_started=False)

    async def _run_once(self) -> None:
        """One Triton to its end, or until it is handed over. Raises with the reason unless this agent ended it."""
        started, self._adopted, self._begun = self._adopted, None, False
        if started is None:
            self._ready_at = None
            self._set(state=self._down_state(), silent=False)
            launch.check_ports(self.settings)
            self._log_mark = self._log.size()
            self.starts_with = () if self._bare else await self.choose_models()
            started = await self._starter.start(self.starts_with)
            self._begun = True
            self.client.secret = started.secret
        process = started.process
        kept = True  # also when this task is cancelled: who kills an agent does not mean its Triton
        try:
            kept = await self._attend(started)
        except Exception:
            kept = False
            raise
        finally:
            if kept:
                process.release()
            else:
                await self._starter.bury(process)

    async def _attend(self, started: Started) -> bool:
        """Until there is nothing more to do for it; whether it is to go on. Raises when it is broken or dead."""
        process = started.process
        try:
            await first(process.wait(), self._serve(started), self._stop.wait(), self._handed_over.wait())
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

    async def _serve(self, started: Started) -> None:
        """Waits until Triton is ready, then watches it. Returns when it is to be started anew."""
        if not started.process.adopted:
            self._set(pid=started.process.pid)
            within_s = self._triton.start_timeout_s + (self._triton.load_timeout_s if self.starts_with else 0.0)
            version = await self._prove(within_s, within_s)
            if self.starts_with:
                await self.on_started_with(self.starts_with, self.status.generation + 1)
            self._now_ready(started, version)
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

    def _now_ready(self, started: Started, version: str) -> None:
        self._log_mark = self._log.size()  # Triton complains at each start of what it does well without
        self._ready_at = time.monotonic()
        generation = self.status.generation + 1
        pid, self._shown = started.process.pid, started.shown
        self._set(state=READY, pid=pid, generation=generation, version=version, message="", silent=False)
        self._plan_restart(agent_started=started.process.adopted)

    def _plan_restart(self, *, agent_started: bool) -> None:
        """Compares the certificates that it read with those on the disk; says so when they differ."""
        try:
            newest = Shown.on_disk(self.settings.tls)
        except PreconditionError as error:  # being replaced at this moment: `certificate_changed` follows
            log.info("triton.certificate_unknown", reason=error.message)
            return
        spread = spread_of(self.settings.node_id)
        self._plan = plan_restart(self._shown, newest, spread, self.now(), agent_started=agent_started)
        if self._plan.message:
            log.info("triton.restart_planned", at=str(self._plan.at), message=self._plan.message)
        if self.status.ready:
            self._set(message=self._plan.message)

    async def _watch(self) -> None:
        """Returns when a restart is due. Raises UnavailableError when it was silent for too long."""
        missed, silent_since = 0, time.monotonic()
        while True:
            await asyncio.sleep(_SILENT_POLL_S if missed else _WATCH_POLL_S)
            await asyncio.to_thread(self._rotate_log)
            asked = time.monotonic()
            if await self.client.live(min(_CHECK_S, self._triton.hang_timeout_s)):
                missed = 0
                self._set(state=READY, silent=False, message=self._plan.message)
                if self._plan.at is not None and self.now() >= self._plan.at:
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
        self._set(state=STARTING, message="Triton is started anew for its renewed certificates")
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
        ready_s = 0.0 if self._ready_at is None else now - self._ready_at
        failures = self._crashes.add(now, ready_s)
        looping = self._crashes.looping
        if self._begun:
            self._bare = looping or ready_s < _EARLY_S
        log.error("triton.down", reason=reason, failures=failures, crash_loop=looping)
        self._set(state=self._down_state(), pid=0, message=reason, silent=False)
        if failures == 1:
            self._backoff.reset()
        pause_s = self._triton.crash_pause_s if looping else self._backoff.next_delay()
        pause_s = max(pause_s, _BARE_PAUSE_S) if self._bare else pause_s
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
        if not await process.exits_within(self.settings.drain_s + EXIT_MARGIN_S):
            log.warning("triton.killed", reason="it did not exit in time", pid=process.pid)


def _obituary(status: int | None, last_error: str, *, adopted: bool) -> str:
    if adopted:
        what = "Triton exited, with a status that only the agent that started it could have seen"
    elif status is not None and status < 0:
        what = f"Triton was killed by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            return what  # from outside: the end of its log says nothing of it
    else:
        what = f"Triton exited with status {status}"
    return f"{what}: {last_error}" if last_error else what


def _reachable(listen: str) -> str:
    """The address to call a server on that listens on `listen`."""
    if listen in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{listen}]" if ":" in listen else listen

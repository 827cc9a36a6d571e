"""Keeps what workers are forked from: at most one process, which is started when it is needed and let go of later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from node_agent.training import limits
from node_agent.training.zygote import Forked, Zygote, ZygoteLostError

log = structlog.get_logger()

REST_S = 60.0
"""After one that was lost there is no other for so long: it may be for a fault of its installation."""
_END_S = 5.0


@dataclass
class Zygotes:
    """At most one zygote, for the event loop alone. It ends when this agent does: its standard input ends."""

    clock: Callable[[], float] = time.monotonic
    _one: Zygote | None = field(default=None, init=False)
    _rests_until: float = field(default=0.0, init=False)
    _halt: limits.Halt = field(default_factory=limits.Halt, init=False)

    @property
    def due(self) -> bool:
        """Whether there is none, and may be one."""
        self._bury()
        return self._one is None and self.clock() >= self._rests_until

    def start(self, command: list[str], environ: Mapping[str, str], nice: int) -> None:
        """Starts one, when it is due."""
        if not self.due:
            return
        try:
            self._one = Zygote(command, environ)
        except OSError as error:
            log.warning("zygote.not_started", reason=str(error))
            self._rests_until = self.clock() + REST_S
            return
        self._halt = limits.Halt()
        limits.stand_back(self._one.process.pid, nice)

    def look(self) -> None:
        """Gives up one that was stopped: who asks it for a process would wait for as long as it may take."""
        one = self._one
        if one is None or one.lost or one.process.exited:
            return
        with suppress(psutil.NoSuchProcess):
            if self._halt.lasts_s(psutil.Process(one.process.pid), self.clock()) >= limits.STOPPED_S:
                one.give_up("it was stopped (SIGSTOP)")

    async def fork(self, folder: Path, environ: Mapping[str, str], within_s: float) -> Forked | None:
        """A process that becomes a folder's worker, with these variables; None when there is nothing to fork it from.

        A zygote that gives none in time is given up.
        """
        one = self._one
        if one is None or not one.suits(environ):
            return None
        try:
            async with asyncio.timeout(within_s):
                return await one.fork(folder, environ)
        except TimeoutError:
            one.give_up(f"it did not answer within {within_s:g} s")
        except ZygoteLostError as error:
            one.give_up(str(error))
        return None

    async def end(self) -> None:
        """Ends it; workers that have begun live on."""
        one, self._one = self._one, None
        if one is not None:
            one.give_up("it is needed no more")
            await one.process.exits_within(_END_S)
            one.process.release()

    def _bury(self) -> None:
        """Lets go of one that was lost, once it is dead."""
        one = self._one
        if one is not None and one.lost and one.process.exited:
            log.warning("zygote.lost", pid=one.process.pid, reason=one.lost, status=one.process.exit_status)
            one.process.release()
            self._one = None
            self._rests_until = self.clock() + REST_S

"""From nothing to a task that runs: prepared, ready, told to go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from aimesh.training.v1 import training_pb2
from meshkit.threads import uninterrupted
from node_agent.training.clients import share
from node_agent.training.concluding import log_text, lost
from node_agent.training.heard import Heard, Said
from node_agent.training.launcher import Seat, write_go
from node_agent.training.outcome import Ending, outcome
from node_agent.training.seats import POLL_S, TERM_S, Seats
from node_agent.training.standing import PREPARING, READY, RUNNING, STOPPED, Standing
from node_agent.training.tools import TaskFailedError

_OPEN_POLL_S = 0.05
"""While workers start: a job that is brought back waits for them."""


class Starting:
    """Starts one task, in two steps: no worker goes on before all are ready."""

    def __init__(self, standing: Standing, seats: Seats, heard: Heard) -> None:
        self._standing = standing
        self._seats = seats
        self._heard = heard
        self._cast = seats.cast

    def still_ready(self) -> bool:
        """Whether an agent before has prepared all, and what it started still runs."""
        cast = self._cast
        needed = [role for role in cast.early if not (role == cast.main and cast.restarts)]
        return self._standing.status.state == READY and not any(self._seats.seat(role).gone for role in needed)

    async def prepare(self) -> None:
        """Fetches what is needed, and starts what may wait for go. Raises TaskFailedError, and what `Preparer` and
        `Launcher` raise.
        """
        standing, preparer = self._standing, self._standing.tools.preparer
        await self._seats.end(0.0)
        self._heard.forget()
        standing.status.port = 0
        await standing.set(PREPARING)
        await self._seats.warm()
        await preparer.prepare(standing.task, standing.folder, standing.tell)
        if self._cast.client is not None:
            await uninterrupted(share, standing.folder, standing.folder.client)
        checkpoint = preparer.bring_checkpoint(standing.task, standing.folder, standing.tell)
        if self._cast.waits:  # it comes while they import what they need
            await _together(self._start_early(), checkpoint)
        else:
            await checkpoint
            await self._start_early()
        await self._until_open()
        await standing.set(READY)

    async def until_go(self) -> bool:
        """Waits until it is told to go on. False when it was told to stop before, and has.

        Raises TaskFailedError when a process ends meanwhile that must be there.
        """
        standing = self._standing
        while not (standing.task.go or standing.task.kind != training_pb2.TASK_KIND_TRAIN):
            if standing.stopping:
                standing.status.step = standing.task.resume.step
                why = "stopped before it began" if not standing.leaving else "the agent was told to end"
                await standing.set(STOPPED, why)
                await self._seats.end(TERM_S)
                return False
            await self._check_waiting()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await standing.changed.wait()
            standing.changed.clear()
        return True

    async def begin(self) -> None:
        """Lets the main process go on, or starts it when it is none that waits. Raises what `Launcher.start` raises."""
        seat = self._seats.main
        if seat.gone:
            self._heard.said = Said()
            await self._seats.start(seat)
        else:
            await asyncio.to_thread(write_go, seat.folder, self._standing.task)
        assert seat.process is not None
        self._standing.status.pid = seat.process.pid
        await self._standing.set(RUNNING)

    async def _start_early(self) -> None:
        for role in self._cast.early:
            await self._seats.start(self._seats.seat(role), waits=True)

    async def _until_open(self) -> None:
        """Waits until the process at which the workers meet says where it listens, and the worker that it waits."""
        host, status, timeout_s = self._cast.host, self._standing.status, self._standing.tools.prepare_timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            await self._check_waiting()
            if (host is None or status.port) and (not self._cast.waits or self._waits()):
                return
            if host is not None and not status.port and time.monotonic() > deadline:
                raise TaskFailedError(f"the {host.name} did not listen within {timeout_s:g} s", may_retry=True)
            await asyncio.sleep(_OPEN_POLL_S)

    def _waits(self) -> bool:
        """Whether the worker waits for go; a client that died meanwhile is started again at go."""
        return self._heard.waiting or (self._cast.restarts and self._seats.main.gone)

    async def _check_waiting(self) -> None:
        """Takes what was said before go. Raises TaskFailedError when a process is gone that must be there."""
        cast = self._cast
        gone = [role for role in cast.early if self._seats.seat(role).gone]
        await self._heard.listen()
        if cast.host is not None and (cast.host in gone or (self._standing.over and cast.host == cast.main)):
            await self._host_lost(self._seats.seat(cast.host))
        self._check_error()
        if cast.main in gone and not cast.restarts:
            await lost(self._standing, self._seats, self._heard)

    async def _host_lost(self, seat: Seat) -> None:
        """Raises TaskFailedError with what it said, or with how it ended."""
        self._check_error()
        how = outcome(Ending(code=await seat.status(), log=await log_text(self._standing.folder)))
        raise TaskFailedError(f"{seat.role.name}: {how.message}", may_retry=True)

    def _check_error(self) -> None:
        """Raises TaskFailedError with the error that the main process has named, if any."""
        if self._standing.over:
            raise TaskFailedError(self._standing.status.message, may_retry=self._standing.status.may_retry)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Does all of it at a time. Raises the first error of any; the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None

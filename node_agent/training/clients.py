"""Clients of an aggregator: one that dies is started again, whether it is a task's main process or runs beside one."""

from __future__ import annotations

import asyncio
import time

import structlog

from meshkit.backoff import Backoff
from meshkit.errors import AimeshError
from node_agent.training.events import EventTail
from node_agent.training.folder import Folder
from node_agent.training.heard import Heard, Said
from node_agent.training.launcher import Role, Seat
from node_agent.training.logs import tail_text
from node_agent.training.outcome import last_lines
from node_agent.training.seats import POLL_S, Seats
from node_agent.training.standing import RUNNING, Standing

log = structlog.get_logger()

_STABLE_S = 60.0
"""A client that ran so long is started again at once."""


class Clients:
    """Keeps the client of one task running."""

    def __init__(self, standing: Standing, seats: Seats, heard: Heard) -> None:
        self._standing = standing
        self._seats = seats
        self._heard = heard
        self._backoff = Backoff(first_s=0.5, most_s=10.0)

    def may_restart(self) -> bool:
        """Whether the main process is one that is to be started again."""
        ending = self._standing.over or self._standing.stopping or self._seats.over_limit
        return self._seats.cast.restarts and self._heard.said.done is None and not ending

    async def restart(self) -> None:
        """Starts the main process again, after a pause. Raises what `Launcher.start` raises."""
        seat, standing = self._seats.main, self._standing
        self._heard.said = Said()
        await self._pause_before(seat)
        await self._seats.start(seat)
        assert seat.process is not None
        standing.status.pid = seat.process.pid
        await standing.set(RUNNING, standing.status.message)

    async def keep(self, role: Role) -> None:
        """Keeps a client running beside the aggregator, from go on until the task is over."""
        seat, standing = self._seats.seat(role), self._standing
        tail = EventTail(seat.folder.events)
        while not standing.over:
            if standing.status.state != RUNNING or standing.stopping:
                await asyncio.sleep(POLL_S)
                continue
            if seat.gone:
                try:
                    await self._seats.start(seat)
                except (AimeshError, OSError) as error:
                    log.warning("task.client_not_started", job=standing.task.job, reason=str(error))
                    await asyncio.sleep(self._backoff.next_delay())
                    continue
            assert seat.process is not None
            await seat.process.wait()
            if await self._said_last(tail):
                return
            if not standing.over:
                await self._pause_before(seat)

    async def _pause_before(self, seat: Seat) -> None:
        """Says why it is started again; the more often it died soon, the longer the pause."""
        standing = self._standing
        text = last_lines(await asyncio.to_thread(tail_text, seat.folder.log), 3)
        standing.status.message = f"its client died and is started again; its log ends with: {text}"[:500]
        log.warning("task.client_died", job=standing.task.job, rank=standing.task.rank, log=text)
        standing.tools.on_change()
        if time.monotonic() - self._seats.started_at > _STABLE_S:
            self._backoff.reset()
        await asyncio.sleep(self._backoff.next_delay())

    async def _said_last(self, tail: EventTail) -> bool:
        """Whether a client that has ended is not to be started again: it is done, or it never could go better."""
        last = False
        while events := await asyncio.to_thread(tail.read):
            for event in events:
                if event.WhichOneof("body") == "error" and not event.error.may_retry:
                    self._standing.status.message = f"its client: {event.error.message}"
                    self._standing.tools.on_change()
                    last = True
                last = last or event.WhichOneof("body") == "done"
        return last


def share(own: Folder, other: Folder) -> None:
    """Gives the client beside an aggregator the same code, data and base model. Blocks on the disk."""
    other.path.mkdir(parents=True, exist_ok=True)
    for path in (other.stop, other.go, other.events):
        path.unlink(missing_ok=True)
    for name in ("code", "data", "base"):
        link, target = other.path / name, own.path / name
        link.unlink(missing_ok=True)
        if target.is_dir():
            link.symlink_to(target, target_is_directory=True)

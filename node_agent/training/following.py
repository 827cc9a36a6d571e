"""While a task runs: what it says is taken, and it is pressed to stop when it is to."""

from __future__ import annotations

import asyncio
import os
import time

import structlog

from aimesh.training.v1 import training_pb2
from node_agent.training.heard import Heard
from node_agent.training.launcher import Seat
from node_agent.training.seats import POLL_S, TERM_S, Seats
from node_agent.training.standing import Standing

log = structlog.get_logger()

_LINGER_S = 30.0
"""A process that has said its last word gets so long to go."""


class Following:
    """Follows the main process of one task."""

    def __init__(self, standing: Standing, seats: Seats, heard: Heard) -> None:
        self._standing = standing
        self._seats = seats
        self._heard = heard
        self._stop_at: float | None = None
        """Monotonic seconds when the main process was asked to stop."""
        self._terminated = False

    async def follow(self) -> None:
        """Until the main process is gone and all that it said is taken."""
        seat = self._seats.main
        while (process := seat.process) is not None and not process.exited:
            await process.exits_within(POLL_S)
            await self._heard.listen()
            await asyncio.to_thread(_rotate, seat)
            await self._press(seat)
        await self._heard.listen()
        await self._heard.all_held.wait()  # what it wrote is reported no later than its end

    async def _press(self, seat: Seat) -> None:
        """Asks the process to stop when it is to, and then less kindly; ends one that has said its last word."""
        now, grace_s = time.monotonic(), self._standing.tools.stop_grace_s
        last_at = self._heard.said.last_at
        if last_at and now - last_at > _LINGER_S:
            await seat.end(0.0)
        elif not self._standing.stopping or self._standing.task.kind != training_pb2.TASK_KIND_TRAIN:
            return
        elif self._stop_at is None:
            self._stop_at = now
            await self._ask_stop()
        elif now - self._stop_at > grace_s + min(TERM_S, grace_s):
            await seat.end(0.0)
        elif now - self._stop_at > grace_s and not self._terminated:
            self._terminated = True
            if seat.process is not None:
                seat.process.terminate()

    async def _ask_stop(self) -> None:
        """By a file, which its worker takes for a request to write a checkpoint and end; SIGTERM is another."""
        folder, cast = self._standing.folder, self._seats.cast
        asked = [(self._seats.main, folder.stop)]
        if cast.client is not None:
            asked.append((self._seats.seat(cast.client), folder.client.stop))
        for seat, path in asked:
            try:
                await asyncio.to_thread(path.touch)
            except OSError as error:  # a full disk
                log.warning("task.stop_not_written", job=self._standing.task.job, reason=str(error))
                if seat.process is not None:
                    seat.process.terminate()


def _rotate(seat: Seat) -> None:
    """Moves a log aside that is too long; where there is no room for it, it begins anew. Blocks on the disk."""
    try:
        seat.log.rotate()
    except OSError as error:
        log.warning("task.log_lost", log=str(seat.log.path), reason=str(error))
        os.truncate(seat.log.path, 0)

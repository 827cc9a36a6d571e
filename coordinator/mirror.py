"""A live copy of etcd's state: lists once, then watches from the list's revision, for as long as the process lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import structlog

from coordinator import keys
from coordinator.decode import advance
from coordinator.etcd import CompactedError, Etcd
from coordinator.state import State
from meshkit.backoff import Backoff
from meshkit.errors import DataLossError, DeadlineError, UnavailableError

log = structlog.get_logger()

BEHIND_S = 2.0
"""The mirror is behind when it has not heard from etcd for so long."""


class Mirror:
    """`state` is the newest state seen; `frozen` says why it may be old, and is empty while the watch stands."""

    def __init__(self, etcd: Etcd, brake_share: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = State(brake_share=brake_share)
        self.frozen = "etcd has not been read yet"
        self._etcd = etcd
        self._clock = clock
        self._heard_at = clock()
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        """Who waits for a state, and for which revision: a burst of changes wakes only those that have theirs."""

    @property
    def loaded(self) -> bool:
        """Whether there is a state at all; before, `state` is empty and says nothing."""
        return self.state.revision > 0

    def behind_s(self) -> float:
        """Seconds since etcd last told all that is new; 0 while that is under BEHIND_S."""
        silent = self._clock() - self._heard_at
        return silent if silent > BEHIND_S else 0.0

    def freeze(self, reason: str) -> None:
        """Says why the state may be old, until the watch stands again."""
        if not self.frozen:
            log.warning("mirror.frozen", reason=reason, revision=self.state.revision)
        self.frozen = reason

    async def load(self) -> None:
        """Lists everything. Raises UnavailableError when etcd does not answer, DataLossError on a damaged value."""
        revision, found = await self._etcd.list(keys.ROOT)
        self._publish(advance(State(brake_share=self.state.brake_share), revision, found))

    async def run(self) -> None:
        """Follows etcd until cancelled; keeps the last state while etcd is away, and catches up when it is back."""
        backoff = Backoff(first_s=0.05, most_s=1.0)
        while True:
            try:
                await self._follow(backoff)
            except CompactedError as error:
                log.warning("mirror.compacted", reason=error.message)
                await self._reload()
            except UnavailableError as error:
                self.freeze(error.message)
                await asyncio.sleep(backoff.next_delay())
            except DataLossError as error:  # a value that nobody can read: wait until somebody has repaired it
                self.freeze(str(error))
                await self._reload()

    async def changes(self) -> AsyncIterator[State]:
        """The state now, and then each newer one; states that come faster than they are taken are skipped."""
        seen = self.state
        yield seen
        while True:
            seen = await self.newer_than(seen)
            yield seen

    async def newer_than(self, seen: State) -> State:
        """The state, once it is another than the one seen."""
        while self.state is seen:
            await self._told(0)
        return self.state

    async def reached(self, revision: int, timeout_s: float = 5.0) -> State:
        """The state once it holds a revision: what a caller who just wrote at it must see.

        Raises DeadlineError when that takes longer than timeout_s seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.state.revision < revision:
                    await self._told(revision)
        except TimeoutError:
            raise DeadlineError(f"revision {revision} was written but not seen within {timeout_s} s") from None
        return self.state

    async def _follow(self, backoff: Backoff) -> None:
        async for batch in self._etcd.watch(keys.ROOT, self.state.revision):
            backoff.reset()
            self._heard_at = self._clock()
            if self.frozen:
                log.info("mirror.live", revision=self.state.revision)
                self.frozen = ""
            if batch.changes:
                self._publish(advance(self.state, batch.revision, batch.changes))

    async def _reload(self) -> None:
        """Lists until it succeeds: nothing is followed, and nothing decided, from a state that could not be read."""
        backoff = Backoff(first_s=0.1, most_s=1.0)
        while True:
            try:
                return await self.load()
            except (UnavailableError, DataLossError) as error:
                self.freeze(str(error))
                await asyncio.sleep(backoff.next_delay())

    async def _told(self, revision: int) -> None:
        """Waits for the next state that holds a revision."""
        waiter = (revision, asyncio.get_running_loop().create_future())
        self._waiting.add(waiter)
        try:
            await waiter[1]
        finally:
            self._waiting.discard(waiter)

    def _publish(self, state: State) -> None:
        self.state = state
        for revision, told in self._waiting:
            if revision <= state.revision and not told.done():
                told.set_result(None)

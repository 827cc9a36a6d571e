"""A live copy of etcd's state: lists once, then watches from the list's revision, for as long as the process lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from coordinator import keys
from coordinator.decode import advance
from coordinator.etcd import CompactedError, Etcd
from coordinator.state import State
from meshkit.backoff import Backoff
from meshkit.errors import DataLossError, DeadlineError, UnavailableError

log = structlog.get_logger()


class Mirror:
    """`state` is the newest state seen; `frozen` says why it may be old, and is empty while the watch stands."""

    def __init__(self, etcd: Etcd) -> None:
        self.state = State()
        self.frozen = "etcd has not been read yet"
        self._etcd = etcd
        self._changed = asyncio.Condition()

    async def load(self) -> None:
        """Lists everything. Raises UnavailableError when etcd does not answer, DataLossError on a damaged value."""
        revision, found = await self._etcd.list(keys.ROOT)
        await self._publish(advance(State(), revision, found))

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
                self._freeze(error.message)
                await asyncio.sleep(backoff.next_delay())
            except DataLossError as error:  # a value that nobody can read: wait until somebody has repaired it
                self._freeze(str(error))
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
        async with self._changed:
            await self._changed.wait_for(lambda: self.state is not seen)
            return self.state

    async def reached(self, revision: int, timeout_s: float = 5.0) -> State:
        """The state once it holds a revision: what a caller who just wrote at it must see.

        Raises DeadlineError when that takes longer than timeout_s seconds.
        """
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.state.revision >= revision)
        except TimeoutError:
            raise DeadlineError(f"revision {revision} was written but not seen within {timeout_s} s") from None
        return self.state

    async def _follow(self, backoff: Backoff) -> None:
        async for batch in self._etcd.watch(keys.ROOT, self.state.revision):
            backoff.reset()
            if self.frozen:
                log.info("mirror.live", revision=self.state.revision)
                self.frozen = ""
            if batch.changes:
                await self._publish(advance(self.state, batch.revision, batch.changes))

    async def _reload(self) -> None:
        """Lists until it succeeds: nothing is followed, and nothing decided, from a state that could not be read."""
        backoff = Backoff(first_s=0.1, most_s=1.0)
        while True:
            try:
                return await self.load()
            except (UnavailableError, DataLossError) as error:
                self._freeze(str(error))
                await asyncio.sleep(backoff.next_delay())

    def _freeze(self, reason: str) -> None:
        if not self.frozen:
            log.warning("mirror.frozen", reason=reason, revision=self.state.revision)
        self.frozen = reason

    async def _publish(self, state: State) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()

"""The store for code that may not block: each call in a thread, with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from aimesh.experiment.v1 import experiment_pb2
from aimesh.identity.v1 import identity_pb2
from coordinator.database import TIMEOUT_S
from coordinator.experiments.store import ExperimentStore, Held, Result
from meshkit.errors import UnavailableError

LIMIT_S = 4.0 * TIMEOUT_S
"""For one call, which is several statements."""
AT_ONCE = 4
"""Calls at a time: a database that hangs holds no more threads than this."""
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Threaded:
    """An ExperimentStore's methods, awaitable."""

    def __init__(self, store: ExperimentStore) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(AT_ONCE)

    @property
    def shared(self) -> bool:
        """Whether all coordinators have the same experiments."""
        return self._store.shared

    @property
    def used(self) -> bool:
        """Whether there may be something in it."""
        return self._store.used

    async def create(
        self, experiment: experiment_pb2.Experiment, dataset: bytes, event: identity_pb2.AuditEvent
    ) -> None:
        """Keeps a new one."""
        await self._call(self._store.create, experiment, dataset, event)

    async def get(self, name: str) -> Held:
        """One."""
        return await self._call(self._store.get, name)

    async def list(self, before: int, most: int, model: str) -> Sequence[tuple[int, experiment_pb2.Experiment]]:
        """Some, the newest first."""
        return await self._call(self._store.list, before, most, model)

    async def in_states(self, states: Sequence[experiment_pb2.ExperimentState.ValueType]) -> Sequence[Held]:
        """All in one of the states."""
        return await self._call(self._store.in_states, states)

    async def change(
        self,
        held: Held,
        now: experiment_pb2.Experiment,
        event: identity_pb2.AuditEvent | None,
        result: Result | None,
    ) -> Held:
        """Writes what has become of one."""
        return await self._call(self._store.change, held, now, event, result)

    async def result(self, name: str) -> Result | None:
        """What its execution came to."""
        return await self._call(self._store.result, name)

    async def dataset(self, digest: str) -> bytes:
        """A dataset's lines."""
        return await self._call(self._store.dataset, digest)

    async def events(self, most: int) -> Sequence[identity_pb2.AuditEvent]:
        """Audit events that wait."""
        return await self._call(self._store.events, most)

    async def forget_events(self, ids: Sequence[str]) -> None:
        """Of those that wait no more."""
        await self._call(self._store.forget_events, ids)

    async def close(self) -> None:
        """Ends all connections."""
        await asyncio.to_thread(self._store.close)

    async def _call(
        self, method: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        try:
            async with asyncio.timeout(LIMIT_S), self._slots:
                return await asyncio.to_thread(method, *args, **kwargs)
        except TimeoutError:
            raise UnavailableError(
                f"the experiments' database {self._store.name} did not answer within {LIMIT_S:g} s",
                hint="check coordinator.experiments.url and its database; nothing else needs it",
                reason="EXPERIMENT_STORE",
            ) from None

"""The leader's placement controller: level-triggered, so it may stop and start between any two lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from coordinator import keys
from coordinator.decode import encode_assignment
from coordinator.election import Election
from coordinator.etcd import Created, Delete, Etcd, Put, Unchanged
from coordinator.mirror import Mirror
from coordinator.placement import place
from coordinator.settings import CoordinatorSettings
from coordinator.state import State, VersionKey
from meshkit.errors import UnavailableError

log = structlog.get_logger()

PACE_S = 0.02
"""Least time between two decisions: a burst of changes becomes one."""
TICK_S = 0.25
"""How long a change of leadership may go unnoticed; a tick with nothing new costs one comparison."""


@dataclass
class PlacementController:
    """Compares what each node is to run with what it was told, and tells it."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    settings: CoordinatorSettings
    now: Callable[[], float]
    """Seconds of a clock that only rises."""
    _leads_since: tuple[int, float] = field(default=(0, 0.0), init=False)
    """The term, and when it began."""

    async def run(self) -> None:
        """Acts whenever the state, the leadership or the grace for absent nodes changes, until cancelled."""
        done: tuple[State, int, bool] | None = None
        while True:
            situation = (self.mirror.state, self.election.term, self._grace())
            if (
                situation != done
                and self.election.term
                and not self.mirror.frozen
                and await self._act(self.mirror.state, self.election.fence())
            ):
                done = situation
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.mirror.newer_than(situation[0])
            await asyncio.sleep(PACE_S)

    def absent(self) -> tuple[str, ...]:
        """Members without a live lease that this leader still trusts to come back."""
        return tuple(sorted(set(self.mirror.state.members) - set(self.mirror.state.nodes))) if self._grace() else ()

    def _grace(self) -> bool:
        """A new leader trusts every member for one lease: the nodes may be rejoining after a restart of everything."""
        if self._leads_since[0] != self.election.term:
            self._leads_since = (self.election.term, self.now())
        return self.now() - self._leads_since[1] < self.settings.node_ttl_s

    async def _act(self, state: State, fence: Created) -> bool:
        """Writes every assignment that differs, all in the term of the decision. Whether all were written."""
        wanted = place(state, self.absent()).assignments
        differing = [
            node for node in sorted({*wanted, *state.assignments}) if wanted.get(node) != state.assignments.get(node)
        ]
        written = [await self._assign(state, node, wanted.get(node, frozenset()), fence) for node in differing]
        return all(written)

    async def _assign(self, state: State, node: str, versions: frozenset[VersionKey], fence: Created) -> bool:
        key = keys.assignment(node)
        change = Put(key, encode_assignment(versions)) if versions else Delete(key)
        guards: list[Unchanged | Created] = [fence, Unchanged(key, state.assignment_revisions.get(node, 0))]
        try:
            revision = await self.etcd.txn(guards, [change])
        except UnavailableError as error:
            log.warning("assignment.not_written", node=node, reason=error.message)
            return False
        if revision is not None:
            log.info("assignment.written", node=node, versions=sorted(f"{n}:{v}" for n, v in versions))
        return revision is not None

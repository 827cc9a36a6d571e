"""The leader's placement controller: level-triggered, so it may stop and start between any two lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import structlog

from coordinator import keys
from coordinator.decode import encode_assignment
from coordinator.election import Election
from coordinator.etcd import Created, Delete, Etcd, Put, Unchanged
from coordinator.mirror import Mirror
from coordinator.placing import placed
from coordinator.state import State, VersionKey
from meshkit.errors import UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()

PACE_S = 0.05
"""Least time between two decisions: a burst of changes becomes one. A long one is followed by as long a rest."""
AT_ONCE = 32
"""Assignments written at the same time."""
MOST_REST_S = 0.25
"""Longest such rest."""
TICK_S = 0.25
"""How long a change of leadership may go unnoticed; a tick with nothing new costs one comparison."""


@dataclass
class PlacementController:
    """Compares what each node is to run with what it was told, and tells it."""

    etcd: Etcd
    mirror: Mirror
    election: Election

    async def run(self) -> None:
        """Acts whenever the state or the leadership changes, until cancelled."""
        done: tuple[State, int] | None = None
        while True:
            situation, began = (self.mirror.state, self.election.term), time.monotonic()
            if (
                situation != done
                and self.election.term
                and not self.mirror.frozen
                and await self._act(self.mirror.state, self.election.fence())
            ):
                done = situation
            took = time.monotonic() - began
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.mirror.newer_than(situation[0])
            await asyncio.sleep(max(PACE_S, min(took, MOST_REST_S)))

    async def _act(self, state: State, fence: Created) -> bool:
        """Writes every assignment that differs, all in the term of the decision. Whether all were written.

        Stops at one that could not be: then either etcd is away, or the decision is old.
        """
        wanted = (await placed(state)).assignments
        differing = [
            node for node in sorted({*wanted, *state.assignments}) if wanted.get(node) != state.assignments.get(node)
        ]
        for start in range(0, len(differing), AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                part = [
                    tasks.create_task(self._assign(state, node, wanted.get(node, frozenset()), fence))
                    for node in differing[start : start + AT_ONCE]
                ]
            if not all(each.result() for each in part):
                return False
        return True

    async def _assign(self, state: State, node: str, versions: frozenset[VersionKey], fence: Created) -> bool:
        key = keys.assignment(node)
        change = Put(key, encode_assignment(versions)) if versions else Delete(key)
        guards: list[Unchanged | Created] = [fence, Unchanged(key, state.assignment_revisions.get(node, 0))]
        try:
            failpoint("placement.decided")
            revision = await self.etcd.txn(guards, [change])
        except UnavailableError as error:
            log.warning("assignment.not_written", node=node, reason=error.message)
            return False
        failpoint("placement.written")
        if revision is not None:
            log.info("assignment.written", node=node, versions=sorted(f"{n}:{v}" for n, v in versions))
        return revision is not None

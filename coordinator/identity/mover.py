"""The leader moves audit events from etcd to the log, oldest first, each exactly once whatever dies in between."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import structlog
from google.protobuf import json_format

from aimesh.identity.v1 import identity_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Delete, Etcd, KeyValue, Put
from coordinator.identity.chain import Head
from coordinator.identity.store import AuditStore
from coordinator.mirror import Mirror
from coordinator.state import State
from meshkit.backoff import Backoff
from meshkit.errors import UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()

BATCH = 100
"""Events moved at once: etcd takes 128 changes in a transaction."""
PACE_S = 0.2
"""Least time between two looks: the events of a burst go together."""
TICK_S = 0.5
"""How long a change of leadership may go unnoticed."""


@dataclass
class AuditMover:
    """Appends to the log first and deletes from etcd then; the log takes an event only once, by its id."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    store: AuditStore
    coordinator_id: str
    failing: str = field(default="", init=False)
    """Why events could not be moved the last time; empty when they could."""
    _warned: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Moves what there is whenever the state changed, until cancelled."""
        backoff = Backoff(first_s=0.5, most_s=10.0)
        done: tuple[State, int] | None = None
        while True:
            situation = (self.mirror.state, self.election.term)
            if situation != done and self.election.term:
                self._warn_of_many_logs(len(situation[0].coordinators))
                try:
                    await self._move()
                except UnavailableError as error:
                    self._say(str(error))
                    await asyncio.sleep(backoff.next_delay())
                    continue
                self._say("")
                backoff.reset()
                done = situation
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.mirror.newer_than(situation[0])
            await asyncio.sleep(PACE_S)

    async def waiting(self, most: int) -> list[identity_pb2.AuditEvent]:
        """At most so many events that are not in the log yet, oldest first."""
        return [read_event(found) for found in await self.etcd.oldest(keys.AUDIT, most)]

    async def seen(self) -> Head:
        """The newest event that the log was seen to hold."""
        _, (held,) = await self.etcd.get(self._head_key())
        known = keys.parse(held.value or b"{}", identity_pb2.AuditEvent())
        return Head(known.sequence, known.hash) if known.sequence else Head()

    async def _move(self) -> None:
        while found := await self.etcd.oldest(keys.AUDIT, BATCH):
            seen = await self.seen()
            head = await asyncio.to_thread(self.store.append, [read_event(item) for item in found])
            failpoint("audit.stored")
            # Without a fence: what is in the log may be deleted by anyone.
            changes: list[Put | Delete] = [Delete(item.key) for item in found]
            if await asyncio.to_thread(self.store.holds, seen):
                newest = identity_pb2.AuditEvent(sequence=head.sequence, hash=head.hash)
                changes.append(Put(self._head_key(), keys.encode(newest)))
            else:  # what was seen stays as it is: else the next event would hide that the log was cut off
                log.error("audit.broken", missing=seen.sequence, hint="run: aimesh audit verify")
            await self.etcd.txn([], changes)

    def _warn_of_many_logs(self, coordinators: int) -> None:
        many = coordinators > 1 and not self.store.shared
        if many and not self._warned:
            log.warning("audit.many_logs", coordinators=coordinators, hint="set coordinator.audit.url to PostgreSQL")
        self._warned = many

    def _head_key(self) -> str:
        return keys.audit_head("shared" if self.store.shared else f"coordinator-{self.coordinator_id}")

    def _say(self, failing: str) -> None:
        if failing and not self.failing:
            log.error("audit.not_moved", reason=failing)
        if self.failing and not failing:
            log.info("audit.moving_again")
        self.failing = failing


def read_event(found: KeyValue) -> identity_pb2.AuditEvent:
    """The event in etcd; one that cannot be read is logged as what it is, so that it stops nothing and is not lost."""
    try:
        event = keys.parse(found.value or b"{}", identity_pb2.AuditEvent())
    except json_format.ParseError:
        damaged = (found.value or b"").decode(errors="replace")
        event = identity_pb2.AuditEvent(action="(damaged event)", after=damaged)
    event.id = found.key.removeprefix(keys.AUDIT)
    return event

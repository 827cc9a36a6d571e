"""This coordinator's place among the others: its own key, and the leader's, both under one lease.

The leader's key holds its id; its create revision is the term. Every write of a leader compares it (`fence`), so a
deposed leader cannot write. Source: etcd's concurrency recipes (election), reduced to one key.
"""

from __future__ import annotations

import asyncio
import os

import structlog

from aimesh.cluster.v1 import cluster_pb2
from coordinator import keys
from coordinator.etcd import Created, Etcd, LeaseGoneError, Put, Unchanged
from coordinator.mirror import Mirror
from coordinator.settings import CoordinatorSettings
from meshkit.backoff import Backoff
from meshkit.errors import ConflictError, SupersededError, UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()


class Election:
    """Keeps this coordinator registered and campaigns. `term` is 0 unless it leads."""

    def __init__(self, etcd: Etcd, mirror: Mirror, settings: CoordinatorSettings) -> None:
        self.term = 0
        self._etcd = etcd
        self._mirror = mirror
        self._settings = settings
        self._lease = 0

    def fence(self) -> Created:
        """The guard that every write of this term carries. Take it once for all writes of one decision.

        Raises SupersededError when this coordinator does not lead: a guard on no leader would hold between two of them.
        """
        if not self.term:
            raise SupersededError("this coordinator does not lead")
        return Created(keys.LEADER, self.term)

    async def run(self) -> None:
        """Registers, campaigns and renews until cancelled; starts anew when its lease lapsed."""
        backoff = Backoff(first_s=0.1, most_s=1.0)
        while True:
            try:
                await self._register()
                backoff.reset()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._campaign())
                    tasks.create_task(self._renew())
            except* (UnavailableError, _LapsedError) as group:
                self.term = 0
                log.warning("election.lost", reasons=[str(error) for error in group.exceptions])
                await asyncio.sleep(backoff.next_delay())

    async def resign(self) -> None:
        """Gives up both keys now, so that nobody waits for the lease."""
        self.term = 0
        if self._lease:
            lease, self._lease = self._lease, 0
            await self._etcd.revoke(lease)

    async def _register(self) -> None:
        """Writes this coordinator's key under a new lease. Raises ConflictError when another process has its id.

        A lease that this coordinator had before is ended first, its leader's key with it: who listens on the address
        now is the only one who can be it, and nobody should wait for that lease to lapse.
        """
        own = keys.coordinator(self._settings.id)
        me = cluster_pb2.Coordinator(id=self._settings.id, address=self._settings.address, pid=os.getpid())
        _, (held,) = await self._etcd.get(own)
        if held.value is not None:
            holder = keys.parse(held.value, cluster_pb2.Coordinator())
            if holder.address != me.address:
                raise ConflictError(
                    f"coordinator id {me.id!r} is held by {holder.address}", hint="give this one another coordinator.id"
                )
            await self._etcd.revoke(held.lease)
            _, (held,) = await self._etcd.get(own)
        self._lease = await self._etcd.grant(self._settings.leader_ttl_s)
        if await self._etcd.txn([Unchanged(own, held.mod_revision)], [Put(own, keys.encode(me), self._lease)]) is None:
            raise UnavailableError(f"coordinator {me.id} registered twice at the same moment")

    async def _campaign(self) -> None:
        """Takes the leader's key whenever nobody has it, and notices when it is another's or was deleted."""
        async for state in self._mirror.changes():
            if state.leader != self._settings.id and state.revision >= self.term:
                self._step_down()
            if not self.term and state.leader in ("", self._settings.id):
                self.term = await self._take_lead()

    async def _take_lead(self) -> int:
        value = self._settings.id.encode()
        try:
            term = await self._etcd.txn([Unchanged(keys.LEADER, 0)], [Put(keys.LEADER, value, self._lease)])
        except LeaseGoneError as error:
            raise _LapsedError(str(error)) from None
        if term is None:
            term = await self._held_term()
        if term:
            failpoint("election.won")
            log.info("election.won", term=term)
        return term

    async def _held_term(self) -> int:
        """The term when the key is ours all the same: the answer to an earlier try was lost, and it was sent again.

        0 when another was first, or when an earlier life of this coordinator holds the key until its lease lapses.
        """
        _, (held,) = await self._etcd.get(keys.LEADER)
        return held.create_revision if held.value is not None and held.lease == self._lease else 0

    def _step_down(self) -> None:
        if self.term:
            log.warning("election.deposed", term=self.term)
        self.term = 0

    async def _renew(self) -> None:
        """Renews the lease three times in its life. A leader that cannot renew for a whole lease stops leading.

        One endpoint gets a third of that time: there must be some left for another when a member of etcd hangs. Only
        etcd says that a lease has lapsed: its next leader lets all leases begin anew, so this one may live, and the
        leader's key with it.
        """
        clock, ttl = asyncio.get_running_loop().time, self._settings.leader_ttl_s
        backoff, renewed, wait = Backoff(first_s=0.1, most_s=ttl / 3), clock(), ttl / 3
        while True:
            await asyncio.sleep(wait)
            began = clock()
            try:
                async with asyncio.timeout_at(max(renewed + ttl, began + ttl / 3)):
                    lapsed = await self._etcd.keep_alive([self._lease], timeout_s=ttl / 3)
                    if not lapsed and not self.term and self._mirror.state.leader == self._settings.id:
                        self.term = await self._held_term()
            except (UnavailableError, TimeoutError) as error:
                log.warning("election.not_renewed", reason=str(error) or "no answer")
                if clock() - renewed >= ttl:
                    self._step_down()
                wait = backoff.next_delay()
                continue
            if lapsed:
                raise _LapsedError("the lease has lapsed")
            backoff.reset()
            renewed, wait = began, ttl / 3


class _LapsedError(Exception):
    """The lease is gone, and both keys with it."""

"""The agents' sessions that this coordinator holds: each is one Join stream, one node key under one lease.

The node's key is written at the join and whenever something in it changes, each time on the revision of the write
before: a session that another one has replaced fails its next write and ends. Heartbeats only renew leases, all in one
round; they and the progress of downloads stay in memory. When an agent falls silent, its Triton is asked before the
node is written SUSPECT, so that an agent that restarts costs its node no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog

from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from coordinator import keys
from coordinator.etcd import Delete, Etcd, LeaseGoneError, Unchanged
from coordinator.hello import check_hello, check_report, durable, node_of
from coordinator.mirror import Mirror
from coordinator.probe import Ask, Probe, TritonProbe
from coordinator.session import Session, first_hello, node_puts, refuse_second_agent, state_of, traced_names
from coordinator.settings import CoordinatorSettings
from coordinator.training.known import KnownJobs
from coordinator.training.orders import Orders
from meshkit.auth import check_speaks_for_node
from meshkit.errors import AimeshError, InvalidInputError, SupersededError, UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()

MISSED_HEARTBEATS = 3
"""So many intervals without a heartbeat make a node SUSPECT."""
REVIVED_AT_ONCE = 32
"""Lapsed leases renewed at the same time: after an outage of etcd, all must be before the first lapses again."""
RENEWED_AT_ONCE = 100
"""Leases in one call: a member of etcd that does not lead asks the leader for one after the other."""
_JOIN_TRIES = 3
"""Other writes of the node's keys at the same moment that a join lives through."""


class Sessions(membership_pb2_grpc.MembershipServiceServicer):
    """Serves MembershipService and keeps what its agents say in etcd."""

    def __init__(
        self,
        etcd: Etcd,
        mirror: Mirror,
        settings: CoordinatorSettings,
        clock: Callable[[], float] = time.monotonic,
        ask: Ask | None = None,
    ) -> None:
        """`ask` probes a node's Triton."""
        self._etcd = etcd
        self._mirror = mirror
        self._settings = settings
        self._clock = clock
        self._ask = ask or TritonProbe(settings.tls)
        self._sessions: dict[str, Session] = {}
        self._orders = Orders()
        self._known_jobs = KnownJobs()
        self._closing = False

    def held(self) -> Mapping[str, Session]:
        """This coordinator's sessions, by node id: the newest load and report of each."""
        return self._sessions

    async def Join(  # noqa: N802  # the rpc's name
        self,
        request_iterator: AsyncIterator[membership_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[membership_pb2.AgentMessage, membership_pb2.CoordinatorMessage],
    ) -> AsyncIterator[membership_pb2.CoordinatorMessage]:
        """One agent's session; see membership.proto."""
        hello = await first_hello(request_iterator)
        session = await self._open(hello)
        reading = asyncio.create_task(self._read(session, request_iterator), name=f"session {hello.node_id}")
        try:
            yield self._welcome(session)
            while (message := await session.outgoing.get()) is not None:
                yield message
            if session.ended:
                raise session.ended
            if self._closing:
                raise UnavailableError("this coordinator is stopping", hint="join another")
        finally:
            reading.cancel()
            await asyncio.shield(self._close(session))

    async def run(self) -> None:
        """Renews leases, notices silence, and hands out assignments, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew_leases())
            tasks.create_task(self._notice_silence())
            tasks.create_task(self._hand_out())

    def end_all(self) -> None:
        """Ends every session so that its agent joins elsewhere; nodes stay in etcd until their leases lapse."""
        self._closing = True
        for session in self._sessions.values():
            session.end()

    def send_away(self, reason: str) -> None:
        """Ends the sessions there are, so that their agents join elsewhere."""
        for session in self._sessions.values():
            session.end(UnavailableError(reason, hint="join another"))

    async def write(
        self,
        session: Session,
        report: membership_pb2.ModelReport | None = None,
        probe: Probe = membership_pb2.PROBE_UNSPECIFIED,
    ) -> None:
        """Writes the node, with the report that it has unless there is a new one, if it differs from the last write.

        With a probe's result it is SUSPECT. Raises SupersededError when another session wrote, or the lease lapsed.
        """
        async with session.writes:
            report = report if report is not None else session.node.report
            node = membership_pb2.Node()
            node.CopyFrom(session.node)
            node.report.CopyFrom(report)
            node.state = membership_pb2.NODE_STATE_SUSPECT if probe else state_of(session, report)
            node.probe = probe
            if node == session.node:
                return
            guard = Unchanged(keys.node(node.id), session.mod_revision)
            with contextlib.suppress(LeaseGoneError):
                if (revision := await self._etcd.txn([guard], node_puts(node, session.lease))) is not None:
                    session.node, session.mod_revision = node, revision
                    return
            raise SupersededError(f"node {node.id}: its session at epoch {node.epoch} was replaced or has lapsed")

    async def _open(self, hello: membership_pb2.Hello) -> Session:
        """Joins the node. Raises InvalidInputError, ConflictError or UnavailableError, as membership.proto says."""
        check_hello(hello)
        check_speaks_for_node(hello.node_id)
        self._refuse_when_blind()
        for _ in range(_JOIN_TRIES):
            if (session := await self._try_join(hello)) is not None:
                break
        else:
            raise UnavailableError(f"node {hello.node_id} joined twice at the same moment", hint="join again")
        if older := self._sessions.get(hello.node_id):
            older.end(SupersededError(f"node {hello.node_id} has joined again"))
        self._sessions[hello.node_id] = session
        log.info("node.joined", node=session.node.id, epoch=session.node.epoch, address=session.node.address)
        return session

    async def _try_join(self, hello: membership_pb2.Hello) -> Session | None:
        """Writes the node under a new lease, in a transaction on what was read; the read's revision is the epoch.

        The write raises the revision, and the next join must have read this one's write: so epochs only rise. None
        when somebody else wrote in between.
        """
        node_key, member_key = keys.node(hello.node_id), keys.member(hello.node_id)
        epoch, (held, known) = await self._etcd.get(node_key, member_key)
        if held.value is not None:
            refuse_second_agent(hello, held.value)
        node = node_of(hello, epoch, self._settings.id)
        lease = await self._etcd.grant(self._settings.node_ttl_s)
        failpoint("session.lease_granted")
        revision = await self._etcd.txn(
            [Unchanged(node_key, held.mod_revision), Unchanged(member_key, known.mod_revision)], node_puts(node, lease)
        )
        if revision is None:
            await self._etcd.revoke(lease)
            return None
        failpoint("session.node_written")
        await self._mirror.reached(revision)
        return Session(node, lease, revision, self._clock(), hello.report)

    def _refuse_when_blind(self) -> None:
        if self._closing:
            raise UnavailableError("this coordinator is stopping", hint="join another")
        if self._mirror.frozen:
            raise UnavailableError(f"this coordinator has lost etcd: {self._mirror.frozen}", hint="join another")

    def _welcome(self, session: Session) -> membership_pb2.CoordinatorMessage:
        welcome = membership_pb2.Welcome(
            epoch=session.node.epoch,
            coordinators=sorted(
                {c.address for c in self._mirror.state.coordinators.values()} | {self._settings.address}
            ),
        )
        welcome.heartbeat_interval.FromMilliseconds(round(self._settings.heartbeat_interval_s * 1000))
        state = self._mirror.state
        node_id = session.node.id
        session.assign(state, self._orders.of(state).get(node_id, ()), self._known_jobs.of(state).of(node_id))
        return membership_pb2.CoordinatorMessage(welcome=welcome)

    async def _read(self, session: Session, messages: AsyncIterator[membership_pb2.AgentMessage]) -> None:
        """Takes what the agent says until its stream ends, then ends ours."""
        try:
            async for message in messages:
                session.last_seen = self._clock()
                await self._take(session, message)
        except AimeshError as error:
            session.end(error)
        finally:
            session.end()

    async def _take(self, session: Session, message: membership_pb2.AgentMessage) -> None:
        kind = message.WhichOneof("body")
        if kind == "heartbeat":
            session.load = message.heartbeat.load
            if session.suspect:
                await self.write(session)
        elif kind == "report":
            check_report(session.node.id, message.report)
            session.report = message.report
            await self.write(session, durable(message.report))
        elif kind == "leaving":
            session.leaving = True
            log.info("node.leaving", node=session.node.id, reason=message.leaving.reason)
            await self.write(session)
        elif kind == "hello":
            raise InvalidInputError("hello may be sent only once")

    async def _close(self, session: Session) -> None:
        """A node that left is gone; one that broke off is SUSPECT, and what its Triton says decides on its routes."""
        node_id = session.node.id
        if self._sessions.get(node_id) is session:
            del self._sessions[node_id]
        if self._closing or isinstance(session.ended, SupersededError):
            return
        with contextlib.suppress(SupersededError, UnavailableError):  # then its lease lapses by itself
            if session.leaving:
                guard = [Unchanged(keys.node(node_id), session.mod_revision)]
                await self._etcd.txn(guard, [Delete(keys.node(node_id)), Delete(keys.member(node_id))])
                failpoint("session.left_deleted")
                await self._etcd.revoke(session.lease)
                log.info("node.left", node=node_id)
            else:
                await self._suspect(session, "its stream broke")

    async def _suspect(self, session: Session, reason: str) -> None:
        probe = await self._ask(session.node)
        log.warning("node.suspect", node=session.node.id, reason=reason, probe=membership_pb2.Probe.Name(probe))
        await self.write(session, probe=probe)

    async def _notice_silence(self) -> None:
        """Suspects the agents whose heartbeats stopped; the first time and not again: the prober goes on from there."""
        interval, looked = self._settings.heartbeat_interval_s, self._clock()
        while True:
            await asyncio.sleep(interval)
            before, looked = looked, self._clock()
            if looked - before > 2 * interval:
                continue  # this process itself stood still: the heartbeats may lie unread
            quiet = looked - MISSED_HEARTBEATS * interval
            silent = [s for s in self._sessions.values() if s.last_seen < quiet and not s.suspect]
            async with asyncio.TaskGroup() as tasks:
                for session in silent:
                    tasks.create_task(self._suspect_silent(session))

    async def _suspect_silent(self, session: Session) -> None:
        try:
            await self._suspect(session, "its heartbeats stopped")
        except SupersededError as error:
            session.end(error)
        except UnavailableError as error:
            log.warning("node.not_written", node=session.node.id, reason=error.message)

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._settings.node_ttl_s / 4)
            quiet = self._clock() - MISSED_HEARTBEATS * self._settings.heartbeat_interval_s
            live = [session for session in self._sessions.values() if session.last_seen >= quiet]
            try:
                lapsed = [
                    gone
                    for start in range(0, len(live), RENEWED_AT_ONCE)
                    for gone in await self._renew(live[start : start + RENEWED_AT_ONCE])
                ]
            except UnavailableError as error:
                log.warning("leases.not_renewed", reason=error.message)
                continue
            turns = asyncio.Semaphore(REVIVED_AT_ONCE)
            async with asyncio.TaskGroup() as tasks:
                for session in lapsed:
                    tasks.create_task(self._revive_in_turn(session, turns))

    async def _renew(self, sessions: Sequence[Session]) -> list[Session]:
        """Renews leases. The sessions whose lease has lapsed."""
        lapsed = await self._etcd.keep_alive([session.lease for session in sessions])
        return [session for session in sessions if session.lease in lapsed]

    async def _revive_in_turn(self, session: Session, turns: asyncio.Semaphore) -> None:
        async with turns:
            try:
                await self._revive(session)
            except UnavailableError as error:
                log.warning("lease.not_renewed", node=session.node.id, reason=error.message)

    async def _revive(self, session: Session) -> None:
        """Gives a live session whose lease lapsed (etcd was away, or this process stood still) a new one.

        Ends the session when another one of the node was there since.
        """
        node_key, member_key = keys.node(session.node.id), keys.member(session.node.id)
        async with session.writes:
            _, (held, known) = await self._etcd.get(node_key, member_key)
            member = keys.parse(known.value or b"{}", membership_pb2.Node())
            if held.value is None and member.epoch == session.node.epoch:
                lease = await self._etcd.grant(self._settings.node_ttl_s)
                guards = [Unchanged(node_key, 0), Unchanged(member_key, known.mod_revision)]
                revision = await self._etcd.txn(guards, node_puts(session.node, lease))
                if revision is not None:
                    session.lease, session.mod_revision = lease, revision
                    log.warning("node.lease_renewed", node=session.node.id, reason="its lease had lapsed")
                    return
                await self._etcd.revoke(lease)
        session.end(SupersededError(f"node {session.node.id}: its lease has lapsed"))

    async def _hand_out(self) -> None:
        before: tuple[Any, ...] | None = None
        async for state in self._mirror.changes():
            traced = traced_names(state)  # of a rollout's many writes, only its begin and its end concern a node
            if before is not None and before[-1] == traced:
                traced = before[-1]
            tasks, jobs = self._orders.of(state), self._known_jobs.of(state)
            concerns = (state.assignments, tasks, jobs, state.deployments, state.versions, state.trust, traced)
            changed = (
                [True] * len(concerns)
                if before is None
                else [new is not old for new, old in zip(concerns, before, strict=True)]
            )
            before = concerns
            for session in list(self._sessions.values()) if any(changed) else ():
                # When only assignments, tasks and jobs changed, and not this node's, its message cannot have.
                own = tasks.get(session.node.id, ()), jobs.of(session.node.id)
                if any(changed[3:]) or not session.told(state, *own):
                    session.assign(state, *own)

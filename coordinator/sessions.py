"""The agents' sessions that this coordinator holds: each is one Join stream, one node key under one lease.

The node's key is written at the join and whenever something in it changes, each time on the revision of the write
before: a session that another one has replaced fails its next write and ends. Heartbeats only renew leases, all in one
round; they and the progress of downloads stay in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio
import structlog

from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from coordinator import keys
from coordinator.etcd import Delete, Etcd, LeaseGoneError, Put, Unchanged
from coordinator.hello import check_hello, durable, node_of
from coordinator.mirror import Mirror
from coordinator.settings import CoordinatorSettings
from coordinator.state import State
from meshkit.errors import (
    AimeshError,
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    SupersededError,
    UnavailableError,
)

log = structlog.get_logger()

MISSED_HEARTBEATS = 3
"""So many intervals without a heartbeat make a node SUSPECT."""


@dataclass
class Session:
    """One agent's stream. Only its own task and the sessions' loops touch it."""

    node: membership_pb2.Node
    lease: int
    mod_revision: int
    """Of the node's key, as this session wrote it last."""
    last_seen: float
    report: membership_pb2.ModelReport
    """As the agent sent it last, progress included."""
    load: membership_pb2.Load | None = None
    outgoing: asyncio.Queue[membership_pb2.CoordinatorMessage | None] = field(
        default_factory=lambda: asyncio.Queue(maxsize=16)
    )
    sent_assignments: int = -1
    """etcd revision of the assignment sent last; -1 before the first."""
    leaving: bool = False
    ended: AimeshError | None = None
    """Why the coordinator ends the session; None while it does not."""
    writes: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions(membership_pb2_grpc.MembershipServiceServicer):
    """Serves MembershipService and keeps what its agents say in etcd."""

    def __init__(
        self, etcd: Etcd, mirror: Mirror, settings: CoordinatorSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._etcd = etcd
        self._mirror = mirror
        self._settings = settings
        self._clock = clock
        self._sessions: dict[str, Session] = {}
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
        hello = await _first(request_iterator)
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
            tasks.create_task(self._hand_out())

    def end_all(self) -> None:
        """Ends every session so that its agent joins elsewhere; nodes stay in etcd until their leases lapse."""
        self._closing = True
        for session in self._sessions.values():
            _end(session)

    async def _open(self, hello: membership_pb2.Hello) -> Session:
        """Writes the node under a new lease, in a transaction on what was read; the read's revision is the epoch.

        The write raises the revision, and the next join must have read this one's write: so epochs only rise.
        """
        check_hello(hello)
        self._refuse_when_blind()
        node_key, member_key = keys.node(hello.node_id), keys.member(hello.node_id)
        epoch, (held, known) = await self._etcd.get(node_key, member_key)
        if held.value is not None:
            _refuse_second_agent(hello, held.value)
        node = node_of(hello, epoch, self._settings.id)
        lease = await self._etcd.grant(self._settings.node_ttl_s)
        revision = await self._etcd.txn(
            [Unchanged(node_key, held.mod_revision), Unchanged(member_key, known.mod_revision)],
            [Put(node_key, keys.encode(node), lease), Put(member_key, keys.encode(_as_member(node)))],
        )
        if revision is None:
            await self._etcd.revoke(lease)
            raise UnavailableError(f"node {hello.node_id} joined twice at the same moment", hint="join again")
        await self._mirror.reached(revision)
        session = Session(node, lease, revision, self._clock(), hello.report)
        if older := self._sessions.get(hello.node_id):
            _end(older, SupersededError(f"node {hello.node_id} has joined again"))
        self._sessions[hello.node_id] = session
        log.info("node.joined", node=node.id, epoch=epoch, address=node.address)
        return session

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
        self._assign(session, self._mirror.state)
        return membership_pb2.CoordinatorMessage(welcome=welcome)

    async def _read(self, session: Session, messages: AsyncIterator[membership_pb2.AgentMessage]) -> None:
        """Takes what the agent says until its stream ends, then ends ours."""
        try:
            async for message in messages:
                session.last_seen = self._clock()
                await self._take(session, message)
        except AimeshError as error:
            _end(session, error)
        finally:
            _end(session)

    async def _take(self, session: Session, message: membership_pb2.AgentMessage) -> None:
        kind = message.WhichOneof("body")
        if kind == "heartbeat":
            session.load = message.heartbeat.load
            if session.node.state == membership_pb2.NODE_STATE_SUSPECT:
                await self._write(session)
        elif kind == "report":
            session.report = message.report
            await self._write(session, durable(message.report))
        elif kind == "leaving":
            session.leaving = True
            log.info("node.leaving", node=session.node.id, reason=message.leaving.reason)
            await self._write(session)
        elif kind == "hello":
            raise InvalidInputError("hello may be sent only once")

    async def _write(
        self,
        session: Session,
        report: membership_pb2.ModelReport | None = None,
        state: membership_pb2.NodeState.ValueType | None = None,
    ) -> None:
        """Writes the node, with the report that it has unless there is a new one, if it differs from the last write.

        Raises SupersededError when another session did or the lease has lapsed.
        """
        async with session.writes:
            report = report if report is not None else session.node.report
            node = membership_pb2.Node()
            node.CopyFrom(session.node)
            node.report.CopyFrom(report)
            node.state = state if state is not None else _state_of(session, report)
            if node == session.node:
                return
            key = keys.node(node.id)
            guard, change = Unchanged(key, session.mod_revision), Put(key, keys.encode(node), session.lease)
            with contextlib.suppress(LeaseGoneError):
                if (revision := await self._etcd.txn([guard], [change])) is not None:
                    session.node, session.mod_revision = node, revision
                    return
            raise SupersededError(f"node {node.id}: its session at epoch {node.epoch} was replaced or has lapsed")

    async def _close(self, session: Session) -> None:
        """A node that left is gone, one that broke off is SUSPECT until its lease lapses."""
        node_id = session.node.id
        if self._sessions.get(node_id) is session:
            del self._sessions[node_id]
        if self._closing or isinstance(session.ended, SupersededError):
            return
        with contextlib.suppress(SupersededError, UnavailableError):  # then its lease lapses by itself
            if session.leaving:
                guard = [Unchanged(keys.node(node_id), session.mod_revision)]
                await self._etcd.txn(guard, [Delete(keys.node(node_id)), Delete(keys.member(node_id))])
                await self._etcd.revoke(session.lease)
                log.info("node.left", node=node_id)
            else:
                await self._write(session, state=membership_pb2.NODE_STATE_SUSPECT)
                log.warning("node.suspect", node=node_id, reason="its stream broke")

    async def _renew_leases(self) -> None:
        interval = min(self._settings.heartbeat_interval_s, self._settings.node_ttl_s / 4)
        while True:
            await asyncio.sleep(interval)
            quiet = self._clock() - MISSED_HEARTBEATS * self._settings.heartbeat_interval_s
            live = [session for session in self._sessions.values() if session.last_seen >= quiet]
            await self._suspect(session for session in list(self._sessions.values()) if session.last_seen < quiet)
            try:
                lapsed = await self._etcd.keep_alive([session.lease for session in live])
            except UnavailableError as error:
                log.warning("leases.not_renewed", reason=error.message)
                continue
            for session in live:
                if session.lease in lapsed:
                    _end(session, SupersededError(f"node {session.node.id}: its lease has lapsed"))

    async def _suspect(self, silent: Iterable[Session]) -> None:
        for session in silent:
            if session.node.state == membership_pb2.NODE_STATE_SUSPECT:
                continue
            log.warning("node.suspect", node=session.node.id, reason="its heartbeats stopped")
            try:
                await self._write(session, state=membership_pb2.NODE_STATE_SUSPECT)
            except SupersededError as error:
                _end(session, error)
            except UnavailableError as error:
                log.warning("node.not_written", node=session.node.id, reason=error.message)

    async def _hand_out(self) -> None:
        async for state in self._mirror.changes():
            for session in list(self._sessions.values()):
                self._assign(session, state)

    def _assign(self, session: Session, state: State) -> None:
        """Queues the node's assignments when they changed. A full queue ends the session: its agent no longer reads."""
        revision = state.assignment_revisions.get(session.node.id, 0)
        if revision == session.sent_assignments:
            return
        held = sorted(state.assignments.get(session.node.id, ()))
        models = [state.versions[key] for key in held if key in state.versions]
        session.sent_assignments = revision
        assignments = membership_pb2.Assignments(revision=revision, models=models)
        try:
            session.outgoing.put_nowait(membership_pb2.CoordinatorMessage(assignments=assignments))
        except asyncio.QueueFull:
            _end(session, ExhaustedError(f"node {session.node.id} does not read its messages"))


async def _first(messages: AsyncIterator[membership_pb2.AgentMessage]) -> membership_pb2.Hello:
    async for message in messages:
        if message.WhichOneof("body") == "hello":
            return message.hello
        break
    raise InvalidInputError("the first message of Join must be hello")


def _refuse_second_agent(hello: membership_pb2.Hello, held: bytes) -> None:
    holder = keys.parse(held, membership_pb2.Node())
    if holder.instance_id != hello.instance_id:
        raise ConflictError(
            f"node id {hello.node_id!r} is held by another agent (process {holder.pid} at {holder.address})",
            hint="give this agent another node_id; if the other is dead, its lease lapses in a few seconds",
            reason="NODE_ID_TAKEN",
        )


def _state_of(session: Session, report: membership_pb2.ModelReport) -> membership_pb2.NodeState.ValueType:
    if session.leaving:
        return membership_pb2.NODE_STATE_DRAINING
    if report.triton.state == membership_pb2.TRITON_STATE_READY:
        return membership_pb2.NODE_STATE_READY
    return membership_pb2.NODE_STATE_JOINING


def _as_member(node: membership_pb2.Node) -> membership_pb2.Node:
    member = membership_pb2.Node()
    member.CopyFrom(node)
    member.state = membership_pb2.NODE_STATE_DEAD
    member.ClearField("report")
    return member


def _end(session: Session, error: AimeshError | None = None) -> None:
    """Ends the stream after what is queued, with the first error given; drops one message when the queue is full."""
    session.ended = session.ended or error
    if session.outgoing.full():
        session.outgoing.get_nowait()
    session.outgoing.put_nowait(None)

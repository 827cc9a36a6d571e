"""The agent's session with any one of the coordinators."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog

from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from meshkit.backoff import Backoff
from meshkit.channel import coordinator_channel
from meshkit.errors import AimeshError, ConflictError, DeadlineError, UnavailableError
from meshkit.grpc_errors import from_call
from meshkit.tls import TlsSettings, channel_credentials

log = structlog.get_logger()

_WELCOME_TIMEOUT_S = 5.0
_SEND_TIMEOUT_S = 5.0
_GOODBYE_TIMEOUT_S = 3.0
# A coordinator that stands still must be left before the node's lease lapses there.
_ALIVE: list[tuple[str, int | str]] = [("grpc.keepalive_time_ms", 2_000), ("grpc.http2.ping_timeout_ms", 3_000)]

AgentMessage = membership_pb2.AgentMessage
Call = grpc.aio.StreamStreamCall[membership_pb2.AgentMessage, membership_pb2.CoordinatorMessage]


@dataclass(frozen=True)
class _Stream:
    """One call of Join."""

    task: asyncio.Task[None]
    welcomed: asyncio.Event

    def result(self) -> None:
        """Raises what ended it."""
        if self.task.cancelled():  # by gRPC, not by us: that must not end the agent's own task
            raise UnavailableError("the session was cancelled")
        self.task.result()

    async def end(self) -> None:
        """Ends it when it has not ended."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Session:
    """Keeps the agent in the mesh. While no coordinator can be reached, everything else goes on as it was."""

    def __init__(
        self,
        coordinators: tuple[str, ...],
        hello: membership_pb2.Hello,
        report: Callable[[], membership_pb2.ModelReport],
        load: Callable[[], membership_pb2.Load],
        assign: Callable[[membership_pb2.Assignments], None],
        tls: TlsSettings | None = None,
    ) -> None:
        """`hello` is sent with the report of its moment; `report` and `load` give the newest of each."""
        self._tls = tls or TlsSettings()
        self._configured = coordinators
        self._learned: tuple[str, ...] = ()
        self._hello = hello
        self._report = report
        self._load = load
        self._assign = assign
        self._wake = asyncio.Event()
        self._renewing = asyncio.Event()
        self._leaving = ""
        self._ended = asyncio.Event()
        self._current = coordinators[0]
        self.welcomed = asyncio.Event()
        """Set while a coordinator holds the session."""

    @property
    def coordinators(self) -> tuple[str, ...]:
        """Addresses to fetch from and to join, the one of the session first."""
        return tuple(dict.fromkeys((self._current, *self._configured, *self._learned)))

    def tell_port(self, port: int) -> None:
        """Where the agent's own server listens, from the next join on."""
        self._hello.port = port

    def tell_runtimes(self, runtimes: Mapping[str, str]) -> None:
        """What the node runs has become known: joins with it beside the session that goes on until then."""
        self._hello.runtimes.clear()
        self._hello.runtimes.update(runtimes)
        self.renew()

    def changed(self) -> None:
        """The report may have changed: it is sent when it has."""
        self._wake.set()

    def renew(self) -> None:
        """The certificate on the disk is another: joins with it beside the session that goes on until then."""
        self._renewing.set()

    async def run(self) -> None:
        """Joins, and joins again whenever the session ends, until `leave`."""
        backoff = Backoff(first_s=0.1, most_s=2.0)
        while not self._leaving:
            try:
                await self._hold(backoff)
            except (AimeshError, grpc.aio.AioRpcError) as error:
                self._log_end(error)
            finally:
                self.welcomed.clear()
            if not self._leaving:
                self._current = _after(self._current, self.coordinators)
                await asyncio.sleep(backoff.next_delay())
        self._ended.set()

    async def _hold(self, backoff: Backoff) -> None:
        """A session until it ends. Returns when the agent has left, raises otherwise."""
        self._renewing.clear()
        stream = self._open(backoff)
        try:
            while await self._renewed_first(stream):
                stream = await self._replace(stream, self._open(backoff))
            stream.result()
        finally:
            await stream.end()

    def _open(self, backoff: Backoff) -> _Stream:
        welcomed = asyncio.Event()
        return _Stream(asyncio.create_task(self._join(self._current, backoff, welcomed)), welcomed)

    async def _renewed_first(self, stream: _Stream) -> bool:
        """Waits until the certificate is renewed (true) or the stream ends."""
        renewing = asyncio.create_task(self._renewing.wait())
        try:
            await asyncio.wait({stream.task, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            renewing.cancel()
        renewed = self._renewing.is_set() and not stream.task.done()
        self._renewing.clear()
        return renewed

    async def _replace(self, old: _Stream, new: _Stream) -> _Stream:
        """The new stream once it is welcomed; the node is never without one. The old one when the new one fails."""
        welcomed = asyncio.create_task(new.welcomed.wait())
        try:
            await asyncio.wait({new.task, welcomed}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await new.end()
            raise
        finally:
            welcomed.cancel()
        if new.welcomed.is_set():
            await old.end()
            return new
        try:
            new.result()
        except (AimeshError, grpc.aio.AioRpcError) as error:
            log.warning("session.not_renewed", coordinator=self._current, reason=str(error))
        return old

    async def leave(self, reason: str) -> None:
        """Tells the coordinator that the agent goes, and waits until it has taken that in, a few seconds at most."""
        self._leaving = reason
        self._wake.set()
        if self.welcomed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * _GOODBYE_TIMEOUT_S):
                    await self._ended.wait()

    async def _join(self, address: str, backoff: Backoff, welcomed: asyncio.Event) -> None:
        """One stream from Hello to its end. Returns when the agent has left, raises otherwise."""
        async with coordinator_channel(address, credentials=channel_credentials(self._tls), options=_ALIVE) as channel:
            stub: Any = membership_pb2_grpc.MembershipServiceStub(channel)
            call: Call = stub.Join()
            sent = self._report()
            hello = membership_pb2.Hello()
            hello.CopyFrom(self._hello)
            hello.report.CopyFrom(sent)
            await _send(call, AgentMessage(hello=hello))
            welcome = await _welcome(call, address)
            log.info("session.welcomed", coordinator=address, epoch=welcome.epoch)
            self._learned = tuple(welcome.coordinators)
            backoff.reset()
            welcomed.set()
            self.welcomed.set()
            await self._converse(call, sent, welcome.heartbeat_interval.ToTimedelta().total_seconds() or 1.0)

    async def _converse(self, call: Call, sent: membership_pb2.ModelReport, interval_s: float) -> None:
        """Sends and receives until one of the two ends."""
        receiver = asyncio.ensure_future(self._receive(call))
        sender = asyncio.ensure_future(self._send_all(call, sent, interval_s))
        try:
            await asyncio.wait({receiver, sender}, return_when=asyncio.FIRST_COMPLETED)
            if (
                sender.done() and not sender.cancelled() and sender.exception() is None
            ):  # Leaving was sent: the coordinator ends the stream
                await asyncio.wait({receiver}, timeout=_GOODBYE_TIMEOUT_S)
                return
            for task in (receiver, sender):
                if task.cancelled():  # by gRPC, not by us: that must not end the agent's own task
                    raise UnavailableError("the session was cancelled")
                if task.done():
                    task.result()
        finally:
            for task in (receiver, sender):
                task.cancel()
            await asyncio.gather(receiver, sender, return_exceptions=True)
            call.cancel()

    async def _receive(self, call: Call) -> None:
        while isinstance(message := await call.read(), membership_pb2.CoordinatorMessage):
            if message.WhichOneof("body") == "assignments":
                self._assign(message.assignments)
        raise UnavailableError("the coordinator ended the session")

    async def _send_all(self, call: Call, sent: membership_pb2.ModelReport, interval_s: float) -> None:
        """Heartbeats at the interval, the report whenever it differs from the last one, Leaving at the end."""
        next_beat = time.monotonic()
        while not self._leaving:
            self._wake.clear()
            report = self._report()
            if report != sent:
                await _send(call, AgentMessage(report=report))
                sent = report
            if time.monotonic() >= next_beat:
                await _send(call, AgentMessage(heartbeat=membership_pb2.Heartbeat(load=self._load())))
                next_beat = max(next_beat + interval_s, time.monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, next_beat - time.monotonic())):
                    await self._wake.wait()
        await _send(call, AgentMessage(leaving=membership_pb2.Leaving(reason=self._leaving)))
        await call.done_writing()

    def _log_end(self, ended: AimeshError | grpc.aio.AioRpcError) -> None:
        error = ended if isinstance(ended, AimeshError) else from_call(ended)
        hint = ""
        if isinstance(error, ConflictError):
            hint = "another live agent has this node_id: end it, or give this one another; trying again until then"
        log.warning("session.ended", coordinator=self._current, reason=error.message, code=error.code.name, hint=hint)


async def _send(call: Call, message: AgentMessage) -> None:
    try:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await call.write(message)
    except TimeoutError:
        raise DeadlineError(f"the coordinator took no message for {_SEND_TIMEOUT_S:g} s") from None
    except asyncio.InvalidStateError:  # the call has ended, its status says why
        reason = await call.details() or "the coordinator ended the session"
        raise (ConflictError if await call.code() is ConflictError.code else UnavailableError)(reason) from None


async def _welcome(call: Call, address: str) -> membership_pb2.Welcome:
    try:
        async with asyncio.timeout(_WELCOME_TIMEOUT_S):
            message = await call.read()
    except TimeoutError:
        raise DeadlineError(f"{address} gave no Welcome within {_WELCOME_TIMEOUT_S:g} s") from None
    if isinstance(message, membership_pb2.CoordinatorMessage) and message.WhichOneof("body") == "welcome":
        return message.welcome
    raise UnavailableError(f"{address} ended the session before Welcome")


def _after(current: str, addresses: tuple[str, ...]) -> str:
    """The next coordinator to try, in a ring of a fixed order so that all have their turn."""
    ring = sorted(addresses)
    return ring[(ring.index(current) + 1) % len(ring)] if current in ring else ring[0]

"""A simulated agent: it speaks membership.proto as an agent does, and says READY to whatever it is assigned."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from meshkit.backoff import Backoff
from meshkit.channel import aio_channel
from meshkit.errors import DeadlineError, UnavailableError
from tools.simulate.plan import triton

WELCOME_TIMEOUT_S = 30.0
"""A join that takes longer than this is tried elsewhere; longer than a real agent waits, so that it is measured."""
SEND_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 10.0
OWN_CONNECTION: list[tuple[str, int | str]] = [("grpc.use_local_subchannel_pool", 1)]
"""Agents and clients of one process share no connection, as those of many machines do not."""

Message = membership_pb2.AgentMessage
_LOAD = membership_pb2.Load(
    cpu_utilization=0.25,
    memory_used_bytes=8 << 30,
    gpus=[membership_pb2.GpuLoad(index=index, memory_used_bytes=1 << 30) for index in range(4)],
)
_HEARTBEAT = Message(heartbeat=membership_pb2.Heartbeat(load=_LOAD))
Told = Callable[[str, frozenset[str], frozenset[str]], None]
"""(node id, models that are READY from now on, models that are gone): called as the report that says so is made."""


@dataclass
class Tally:
    """What all agents together went through."""

    join_s: list[float] = field(default_factory=list)
    """How long each join took, from the connection's first packet to Welcome."""
    heartbeats: int = 0
    sessions_lost: Counter[str] = field(default_factory=Counter)
    """Sessions that ended though nobody meant them to, by reason."""
    joins_failed: Counter[str] = field(default_factory=Counter)
    """Tries to join that came to nothing, by reason; the next coordinator was tried then."""


class Agent:
    """One node. `run` is its life; cancelling that is the node's sudden death."""

    def __init__(self, hello: membership_pb2.Hello, coordinators: tuple[str, ...], tally: Tally, told: Told) -> None:
        """`coordinators` in the order in which they are tried."""
        self.node_id = hello.node_id
        self._hello = hello
        self._coordinators = coordinators
        self._tally = tally
        self._told = told
        self._wake = asyncio.Event()
        self._ready = True
        self._leaving = False
        self._report_due = False
        self._revision = 0
        self.versions: Mapping[str, str] = {}
        """What it runs: versions by name."""
        self.joined = asyncio.Event()
        """Set while a coordinator holds its session."""

    @property
    def models(self) -> frozenset[str]:
        """Names of what it runs."""
        return frozenset(self.versions)

    async def run(self) -> None:
        """Joins, and joins again at the next coordinator when a session ends, until it has left."""
        backoff = Backoff(first_s=0.1, most_s=2.0)
        attempt = 0
        while True:
            address = self._coordinators[attempt % len(self._coordinators)]
            try:
                if await self._session(address):
                    return
            except (UnavailableError, DeadlineError) as error:
                self._failed(error.message)
            except grpc.aio.AioRpcError as error:
                self._failed(f"{error.code().name}: {error.details()}")
            finally:
                self.joined.clear()
            attempt += 1
            await asyncio.sleep(backoff.next_delay())

    def leave(self) -> None:
        """Says goodbye; `run` ends when the coordinator has taken it in."""
        self._leaving = True
        self._wake.set()

    def set_ready(self, *, ready: bool) -> None:
        """Reports that its Triton is ready, or is not."""
        self._ready = ready
        self._say()

    def _failed(self, reason: str) -> None:
        count = self._tally.sessions_lost if self.joined.is_set() else self._tally.joins_failed
        count[reason] += 1

    async def _session(self, address: str) -> bool:
        """One session; whether it ended because the agent left. Raises what ended it otherwise."""
        began = time.monotonic()
        async with aio_channel(address, options=OWN_CONNECTION) as channel:
            stub: Any = membership_pb2_grpc.MembershipServiceStub(channel)
            call = stub.Join()
            self._hello.report.CopyFrom(self._report())
            await _send(call, Message(hello=self._hello))
            welcome = await _welcome(call, address)
            self._tally.join_s.append(time.monotonic() - began)
            self.joined.set()
            return await self._converse(call, welcome.heartbeat_interval.ToTimedelta().total_seconds())

    async def _converse(self, call: Any, interval_s: float) -> bool:
        """Speaks and listens until one of the two ends; see `_session`."""
        receiver = asyncio.create_task(self._receive(call))
        sender = asyncio.create_task(self._send_all(call, interval_s))
        try:
            await asyncio.wait({receiver, sender}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and not sender.exception():  # Leaving was sent: the coordinator ends the stream
                await asyncio.wait({receiver}, timeout=GOODBYE_TIMEOUT_S)
        finally:
            for task in (receiver, sender):
                task.cancel()
            await asyncio.gather(receiver, sender, return_exceptions=True)
        for task in (receiver, sender):
            if not task.cancelled():
                task.result()
        if not self._leaving:
            raise UnavailableError(f"the coordinator ended the session: {await call.details()}")
        return True

    async def _receive(self, call: Any) -> None:
        while isinstance(message := await call.read(), membership_pb2.CoordinatorMessage):
            self._take(message.assignments)

    async def _send_all(self, call: Any, interval_s: float) -> None:
        """Heartbeats at the interval, from a moment of its own, and reports as they come; Leaving at last."""
        beat_at = time.monotonic() + random.uniform(0, interval_s)  # noqa: S311  # spread, not secret
        while not self._leaving:
            try:
                async with asyncio.timeout(max(0.0, beat_at - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                beat_at = max(beat_at + interval_s, time.monotonic())
                self._tally.heartbeats += 1
                await _send(call, _HEARTBEAT)
                continue
            self._wake.clear()
            if self._report_due:
                self._report_due = False
                await _send(call, Message(report=self._report()))
        await _send(call, Message(leaving=membership_pb2.Leaving(reason="simulated")))

    def _take(self, assignments: membership_pb2.Assignments) -> None:
        assigned = {model.name: model.version for model in assignments.models}
        added, removed = assigned.keys() - self.models, self.models - assigned.keys()
        self.versions, self._revision = assigned, assignments.revision
        self._say()
        self._told(self.node_id, frozenset(added), removed)

    def _say(self) -> None:
        self._report_due = True
        self._wake.set()

    def _report(self) -> membership_pb2.ModelReport:
        return membership_pb2.ModelReport(
            triton=triton(ready=self._ready),
            models=[
                membership_pb2.ModelStatus(name=name, version=version, state=membership_pb2.MODEL_STATE_READY)
                for name, version in sorted(self.versions.items())
            ],
            assignments_revision=self._revision,
        )


async def _send(call: Any, message: Message) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await call.write(message)
    except TimeoutError:
        raise DeadlineError(f"the coordinator took no message for {SEND_TIMEOUT_S:g} s") from None
    except asyncio.InvalidStateError:  # the call has ended, its status says why
        raise UnavailableError(f"the coordinator ended the session: {await call.details()}") from None


async def _welcome(call: Any, address: str) -> membership_pb2.Welcome:
    try:
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            message = await call.read()
    except TimeoutError:
        raise DeadlineError(f"{address} gave no Welcome within {WELCOME_TIMEOUT_S:g} s") from None
    if isinstance(message, membership_pb2.CoordinatorMessage):
        return message.welcome
    raise UnavailableError(f"{address} ended the session before Welcome: {await call.details()}")

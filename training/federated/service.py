"""What clients call: hands out the round, takes their updates, one refused at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from aimesh.training.v1 import federated_pb2, federated_pb2_grpc
from meshkit.auth import AuthInterceptor, check_speaks_for_node, identify
from meshkit.errors import AimeshError, InvalidInputError, SupersededError, UnavailableError
from meshkit.server import MeshServer
from meshkit.threads import uninterrupted
from meshkit.tls import TlsSettings, server_credentials
from training.federated.evaluation import Evaluated, Evaluation
from training.federated.rounds import Desk
from training.federated.underway import Closed
from training.federated.updates import Incoming, Update
from training.federated.wire import PART_BYTES, Tensors, parts_of, refused

SERVICE = "aimesh.training.v1.FederatedService"
PART_S = 60.0
"""A client that sends nothing for so long in the middle of an update has broken off."""


class Changes:
    """Tells those who wait that something changed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wakes everyone who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, within_s: float | None = None) -> None:
        """Until the next change, or so many seconds."""
        event = self._event
        try:
            async with asyncio.timeout(within_s):
                await event.wait()
        except TimeoutError:
            return


class FederatedRounds(federated_pb2_grpc.FederatedServiceServicer):
    """The desk behind gRPC. `nodes` names the node that may speak for each client."""

    def __init__(self, desk: Desk, nodes: Sequence[str]) -> None:
        self.desk = desk
        self.changes = Changes()
        """Of the round under way: an update came, or broke off."""
        self.openings = Changes()
        """A client that was not wanted may be now. Apart, so that an update does not wake everyone who waits."""
        self.evaluation: Evaluation | None = None
        """After the last round, where clients measure the last model."""
        self.over = False
        self.told_over: set[int] = set()
        """Clients that know that the job is done."""
        self.seen: set[int] = set()
        """Clients that have come."""
        self.nodes = nodes
        self._adding = threading.Lock()
        self._coming: dict[int, Incoming] = {}
        """Updates on their way, by client: of one that begins anew the newest."""

    async def TakeRound(  # noqa: N802
        self, request: federated_pb2.TakeRoundRequest, context: Any
    ) -> AsyncIterator[federated_pb2.TakeRoundResponse]:
        """See the contract."""
        self._check(request.job, request.client)
        while not self.over:
            said, tensors = self._wanted(request)  # of this round, also when the next one begins meanwhile
            self.seen.add(request.client)
            if said is not None:
                yield federated_pb2.TakeRoundResponse(round=said)
                for part in parts_of(tensors):
                    yield federated_pb2.TakeRoundResponse(part=part)
                return
            await self.openings.wait()
        yield federated_pb2.TakeRoundResponse(over=True)
        self.told_over.add(request.client)
        self.changes.tell()

    async def SendUpdate(  # noqa: N802
        self, request_iterator: AsyncIterator[federated_pb2.SendUpdateRequest], context: Any
    ) -> federated_pb2.SendUpdateResponse:
        """See the contract."""
        first = await _next(request_iterator)
        if first is None or first.WhichOneof("body") != "header":
            raise refused("an update begins with its header")
        header = first.header
        self._check(header.job, header.client)
        incoming = self.desk.begin(header)
        if incoming is None:
            return federated_pb2.SendUpdateResponse(received=len(self.desk.taken))
        try:
            received = await self._take(incoming, request_iterator)
        except InvalidInputError as error:
            self.desk.refuse(header, error.message)
            raise
        finally:
            self.changes.tell()
        return federated_pb2.SendUpdateResponse(received=received)

    async def SendEvaluation(  # noqa: N802
        self, request: federated_pb2.SendEvaluationRequest, context: Any
    ) -> federated_pb2.SendEvaluationResponse:
        """See the contract."""
        self._check(request.job, request.client)
        if self.evaluation is None:
            raise SupersededError("the last model is not there yet", hint="take the round again", reason="ROUND_OVER")
        try:
            self.evaluation.answer(request.client, request.samples, request.values)
        finally:
            self.changes.tell()
        return federated_pb2.SendEvaluationResponse()

    async def close(self) -> Closed:
        """Makes the next model; updates that come meanwhile are of a round that is over. Raises OSError."""
        self.desk.closing = True
        return await asyncio.to_thread(self._close)

    def ready(self) -> bool:
        """Whether the round can be closed. Raises InvalidInputError as Desk.ready does."""
        before = self.desk.drawn
        ready = self.desk.ready(time.monotonic())
        if self.desk.drawn != before:
            self.openings.tell()
        return ready

    def advance(self, closed: Closed) -> None:
        """Hands the next round out."""
        self.desk.advance(closed, time.monotonic())
        self.openings.tell()

    def evaluate(self, number: int, model: Tensors) -> None:
        """Has clients measure the model that so many rounds have made, in place of further rounds."""
        self.evaluation = Evaluation(self.desk.settings, number, model, time.monotonic(), self.desk.away)
        self.openings.tell()

    def evaluated(self) -> Evaluated | None:
        """What came of the evaluation; None while answers are waited for, and where there is none."""
        if self.evaluation is None or not self.evaluation.ready(time.monotonic()):
            return None
        return self.evaluation.close()

    def finish(self) -> None:
        """Tells everyone that the job is done."""
        self.over = True
        self.openings.tell()

    def _wanted(self, request: federated_pb2.TakeRoundRequest) -> tuple[federated_pb2.Round | None, Tensors]:
        """What is wanted of a client now, if anything, and the tensors that it needs for that."""
        now_s = time.monotonic()
        if self.evaluation is not None:
            return self.evaluation.take(request.client, now_s), self.evaluation.model
        return self.desk.take(request.client, request.samples, now_s), self.desk.tensors()

    async def _take(self, incoming: Incoming, requests: AsyncIterator[federated_pb2.SendUpdateRequest]) -> int:
        """Reads an update to its end and adds it."""
        client = incoming.header.client
        self._coming[client] = incoming
        try:
            while (request := await _next(requests)) is not None:
                if request.WhichOneof("body") != "part":
                    raise refused("an update has one header, and then parts")
                self._check_still(incoming)
                incoming.take(request.part)
            self._check_still(incoming)  # or it would wait for a round's close to be told that it is over
            update = incoming.finish()
        except (AimeshError, OSError, asyncio.CancelledError):
            incoming.drop()
            raise
        finally:
            if self._coming.get(client) is incoming:
                del self._coming[client]
        if sum(slot.bytes for slot in update.layout) <= PART_BYTES:  # sooner done than handed over
            return self._add(update)
        return await uninterrupted(self._add, update)

    def _check_still(self, incoming: Incoming) -> None:
        """Raises SupersededError when the update can no longer count: however slowly it comes, it does not stay."""
        self.desk.check_open(incoming.header)
        if self._coming.get(incoming.header.client) is not incoming:
            raise SupersededError("this update is being sent anew", hint="one at a time", reason="ROUND_OVER")

    def _add(self, update: Update) -> int:
        """Adds an update, one after the other: in a thread to its end, also when the call is broken off meanwhile."""
        with self._adding:
            try:
                return self.desk.add(update)
            except (AimeshError, OSError):
                update.drop()
                raise

    def _close(self) -> Closed:
        with self._adding:
            return self.desk.close()

    def _check(self, job: str, client: int) -> None:
        if job != self.desk.settings.job:
            raise refused(f"job {job!r} is not the one of this aggregator, {self.desk.settings.job!r}")
        if client >= len(self.nodes):
            raise refused(f"client {client} is not one of the {len(self.nodes)} of this job")
        check_speaks_for_node(self.nodes[client])


def federated_server(address: str, rounds: FederatedRounds, tls: TlsSettings) -> MeshServer:
    """The aggregator's server, not yet started. Raises PreconditionError when a certificate cannot be read."""
    server = MeshServer(
        address,
        (SERVICE,),
        credentials=server_credentials(tls),
        interceptors=[AuthInterceptor(partial(identify, tls=tls.on, check_key=None))],
    )
    federated_pb2_grpc.add_FederatedServiceServicer_to_server(rounds, server.grpc)
    return server


async def _next(requests: AsyncIterator[federated_pb2.SendUpdateRequest]) -> federated_pb2.SendUpdateRequest | None:
    """The next message, or None at the end. Raises UnavailableError when none comes."""
    try:
        async with asyncio.timeout(PART_S):
            return await anext(requests, None)
    except TimeoutError:
        raise UnavailableError(f"the update broke off: nothing came for {PART_S:g} s", hint="send it again") from None

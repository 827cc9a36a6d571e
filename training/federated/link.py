"""The aggregator as a node's clients see it: asked for rounds, sent answers, and away for a while now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from aimesh.training.v1 import federated_pb2, federated_pb2_grpc
from meshkit.errors import UnavailableError
from meshkit.grpc_errors import from_call
from training.federated import local
from training.federated.node import Client
from training.federated.wire import Gathered, Layout, Reader, Tensors, parts_of
from training.process import Process

_READ_S = 60.0
"""How long the next part of a model may take."""
_SEND_S = 600.0
"""How long an update may take."""
_SAY_S = 20.0
"""How long a message without tensors may take."""
_AWAY_S = 120.0
"""How long the aggregator may be away before the process gives up, for its agent to decide."""
_LOOK_S = 0.3
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Aggregator:
    """Where all clients of a node ask."""

    def __init__(self, process: Process, channel: grpc.aio.Channel) -> None:
        self._process = process
        self._stub: Any = federated_pb2_grpc.FederatedServiceStub(channel)
        self._heard_s = time.monotonic()
        """When it was there last."""

    def ask(self, client: Client) -> Any:
        """The call that waits for a client's next round; to be cancelled once it is no longer needed."""
        request = federated_pb2.TakeRoundRequest(
            job=self._process.task.job,
            client=client.number,
            samples=len(client.share.learn),
            last_round=client.last_round,
        )
        return self._stub.TakeRound(request)  # waits for as long as others train: `first` looks after it

    async def first(self, call: Any) -> federated_pb2.TakeRoundResponse:
        """The first answer, however long it takes. Raises StoppedError when the process is to end, AioRpcError."""
        reading = asyncio.ensure_future(call.read())
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=_LOOK_S)
                self._process.seen()
                if self._process.stopping():
                    raise local.StoppedError
                if done:
                    found: federated_pb2.TakeRoundResponse = reading.result()
                    return found
        finally:
            reading.cancel()

    async def model(self, call: Any, layout: Layout) -> Tensors:
        """The round's tensors, after its first answer.

        Raises AioRpcError, UnavailableError when nothing comes, InvalidInputError when they are not of this layout.
        """
        gathered = Gathered(layout)
        reader = Reader(layout, gathered)
        while (answer := await _read(call)) is not _EOF:
            self._process.seen()
            reader.take(answer.part)
        reader.end()
        self._heard_s = time.monotonic()
        return gathered.tensors

    async def send_update(self, client: Client, header: federated_pb2.UpdateHeader, tensors: Tensors) -> bool:
        """Sends an update; see `_deliver`."""
        return await self._deliver(client, lambda: self._stub.SendUpdate(_requests(header, tensors), timeout=_SEND_S))

    async def send_evaluation(self, client: Client, said: federated_pb2.SendEvaluationRequest) -> bool:
        """Sends what a client measured of the last model; see `_deliver`."""
        return await self._deliver(client, lambda: self._stub.SendEvaluation(said, timeout=_SAY_S))

    async def again(self, client: Client, error: grpc.aio.AioRpcError) -> None:
        """Waits before the next try.

        Raises StoppedError, UnavailableError when the aggregator was away for too long, what it said when it was there.
        """
        if error.code() not in _AWAY:
            raise from_call(error)
        self._process.seen()
        if self._process.stopping():
            raise local.StoppedError
        away = time.monotonic() - self._heard_s
        if away > _AWAY_S:
            raise UnavailableError(
                f"client {client.number}: the aggregator at {self._process.task.rendezvous} has been away for "
                f"{away:.0f} s: {error.details()}",
                hint="rank 0's log says what became of it",
                reason="PEER_LOST",
            ) from error
        await asyncio.sleep(client.backoff.next_delay())

    async def _deliver(self, client: Client, send: Callable[[], Awaitable[Any]]) -> bool:
        """Sends until it is taken (True) or too late (False). Raises InvalidInputError when it is refused."""
        while True:
            try:
                await send()
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                    raise from_call(error) from None
                if error.code() == grpc.StatusCode.ABORTED:
                    print(f"client {client.number}: {error.details()}", flush=True)  # noqa: T201  # the worker's log
                    return False
                await self.again(client, error)
            else:
                self._heard_s = time.monotonic()
                return True


async def _requests(header: federated_pb2.UpdateHeader, tensors: Tensors) -> AsyncIterator[Any]:
    yield federated_pb2.SendUpdateRequest(header=header)
    for part in parts_of(tensors):
        yield federated_pb2.SendUpdateRequest(part=part)


async def _read(call: Any) -> Any:
    """The next part, or _EOF. Raises AioRpcError, UnavailableError when nothing comes."""
    try:
        async with asyncio.timeout(_READ_S):
            return await call.read()
    except TimeoutError:
        raise UnavailableError(
            f"the aggregator sent nothing of a round's model for {_READ_S:g} s",
            hint="rank 0's log says what became of it",
            reason="PEER_LOST",
        ) from None

"""The clients of one node: each takes rounds from the aggregator, trains on its own data, and sends what changed.

They wait side by side and train one after the other. The aggregator may be away for a while: they come again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from torch import nn

from aimesh.training.v1 import federated_pb2, federated_pb2_grpc
from meshkit.backoff import Backoff
from meshkit.channel import aio_channel
from meshkit.errors import AimeshError, InvalidInputError, UnavailableError
from meshkit.grpc_errors import from_call
from meshkit.tls import TlsSettings, channel_credentials
from training.building import build
from training.data.order import Indices
from training.federated import local
from training.federated.aggregator import tls_of_environment
from training.federated.population import Share, shares
from training.federated.variates import Variates
from training.federated.wire import CONTROL, Array, Gathered, Reader, Tensors, layout_of, parts_of, with_control
from training.process import Process
from training.run.finish import evaluate
from training.run.group import Group, device_of
from training.trainer import Entry

_READ_S = 60.0
"""How long the next part of a model may take."""
_SEND_S = 600.0
"""How long an update may take."""
_AWAY_S = 120.0
"""How long the aggregator may be away before the process gives up, for its agent to decide."""
_LOOK_S = 0.3
_MOST_REFUSED = 3
"""Updates refused one after the other before a client says that it is wrong."""
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass
class _Node:
    """What the clients of a node share."""

    process: Process
    entry: Entry
    model: nn.Module
    group: Group
    variates: Variates
    stub: federated_pb2_grpc.FederatedServiceAsyncStub
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the one that trains: they share the model and the node's cores."""
    heard_s: float = field(default_factory=time.monotonic)
    """When the aggregator was there last."""


@dataclass
class _Client:
    """One client."""

    share: Share
    last_round: int = 0
    refused: int = 0
    """Updates refused one after the other."""
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.1, most_s=2.0))


def take_part(process: Process) -> None:
    """Takes part in a job until it is over or the process is told to stop. Raises what goes wrong."""
    process.seen("loading the trainer and its data")
    entry = build(process.task.spec, process.folder.root)
    mine = shares(process.task, entry)
    device = device_of()
    process.seen("making the model")
    model = entry.model().to(device)
    last = asyncio.run(_all(process, entry, model, mine, Group(0, 1, device)))
    process.events.done(last, stopped=process.stopping())


async def _all(process: Process, entry: Entry, model: nn.Module, mine: list[Share], group: Group) -> int:
    """Carries all clients through; gives the last round that any took part in."""
    async with _channel(process.task.rendezvous, tls_of_environment()) as channel:
        stub: Any = federated_pb2_grpc.FederatedServiceStub(channel)
        variates = Variates(process.folder.root.parent / "clients")
        node = _Node(process, entry, model, group, variates, stub)
        clients = [_Client(share) for share in mine]
        try:
            async with asyncio.TaskGroup() as tasks:
                for client in clients:
                    tasks.create_task(_rounds(node, client))
        except BaseExceptionGroup as several:
            error = _first(several)
            if not isinstance(error, local.StoppedError):
                raise error from several
    return max(client.last_round for client in clients)


async def _rounds(node: _Node, client: _Client) -> None:
    """Round after round until the job is over. Raises StoppedError when the process is to end."""
    while True:
        try:
            if not await _round(node, client):
                return
            client.backoff.reset()
        except grpc.aio.AioRpcError as error:
            await _again(node, client, error)


async def _round(node: _Node, client: _Client) -> bool:
    """Waits for a round and takes part in it; False when the job is over. Raises AioRpcError."""
    process = node.process
    request = federated_pb2.TakeRoundRequest(
        job=process.task.job,
        client=client.share.client,
        samples=len(client.share.learn),
        last_round=client.last_round,
    )
    call = node.stub.TakeRound(request)
    try:
        first = await _wait(node, call)
        if first.over:
            return False
        async with node.turn:
            given = await _model(node, first.round, call)
            began = time.monotonic()
            process.place.doing = f"training in round {first.round.number} as client {client.share.client}"
            trained, own = await asyncio.to_thread(_train, node, client, first.round, given)
            _point(node, client, first.round, trained, time.monotonic() - began)
    finally:
        call.cancel()
    await _send(node, client, first.round, trained, own)
    return True


async def _wait(node: _Node, call: Any) -> federated_pb2.TakeRoundResponse:
    """The first answer, however long it takes. Raises StoppedError, AioRpcError."""
    reading = asyncio.ensure_future(call.read())
    try:
        while True:
            done, _ = await asyncio.wait({reading}, timeout=_LOOK_S)
            node.process.seen()
            if node.process.stopping():
                raise local.StoppedError
            if done:
                found: federated_pb2.TakeRoundResponse = reading.result()
                return found
    finally:
        reading.cancel()


async def _model(node: _Node, said: federated_pb2.Round, call: Any) -> Tensors:
    """The round's tensors. Raises AioRpcError, InvalidInputError when they are not this trainer's."""
    layout = layout_of(local.travelling(node.model))
    if said.scaffold:
        layout = with_control(layout, local.trained_names(node.model))
    gathered = Gathered(layout)
    reader = Reader(layout, gathered)
    while (answer := await _read(call)) is not _EOF:
        node.process.seen()
        reader.take(answer.part)
    reader.end()
    node.heard_s = time.monotonic()
    return gathered.tensors


def _train(
    node: _Node, client: _Client, said: federated_pb2.Round, given: Tensors
) -> tuple[local.Trained, dict[str, Array]]:
    """Evaluates the round's model where samples are held out, trains it, keeps the variate; runs in a thread."""
    own: dict[str, Array] = {}
    if said.scaffold:
        zeros = {
            name.removeprefix(CONTROL): np.zeros_like(array)
            for name, array in given.items()
            if name.startswith(CONTROL)
        }
        own = node.variates.load(client.share.client, said.counted, zeros)
    values: dict[str, float] = {}
    if len(client.share.kept):
        local.load(node.model, {name: array for name, array in given.items() if not name.startswith(CONTROL)})
        values = evaluate(node.entry, client.share.kept, node.model, node.group, node.process)

    def seen(step: int, batch: Indices) -> bool:
        node.process.seen()
        node.process.place.step, node.process.place.batch = step, batch
        return node.process.stopping()

    trained = local.train(node.entry, node.model, client.share.learn, said, given, own, node.group, seen)
    node.process.place.step = 0
    if said.scaffold:
        node.variates.save(client.share.client, said.number, said.counted, trained.control)
    return local.with_values(trained, values), own


async def _send(node: _Node, client: _Client, said: federated_pb2.Round, trained: local.Trained, own: Tensors) -> None:
    """Sends the update until it is taken, refused, or too late. Raises InvalidInputError when it is always refused."""
    header = federated_pb2.UpdateHeader(
        job=node.process.task.job,
        client=client.share.client,
        round=said.number,
        samples=len(client.share.learn),
        loss=trained.loss,
        steps=trained.steps,
        values=trained.values,
    )
    changes = {CONTROL + name: trained.control[name] - own[name] for name in trained.control}
    while True:
        try:
            await node.stub.SendUpdate(_requests(header, {**trained.difference, **changes}), timeout=_SEND_S)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                _refused(client, from_call(error))
                return
            if error.code() == grpc.StatusCode.ABORTED:
                print(f"client {client.share.client}: {error.details()}", flush=True)  # noqa: T201  # the log
                return
            await _again(node, client, error)
        else:
            client.last_round, client.refused = said.number, 0
            node.heard_s = time.monotonic()
            return


async def _requests(header: federated_pb2.UpdateHeader, tensors: Tensors) -> AsyncIterator[Any]:
    yield federated_pb2.SendUpdateRequest(header=header)
    for part in parts_of(tensors):
        yield federated_pb2.SendUpdateRequest(part=part)


def _refused(client: _Client, error: AimeshError) -> None:
    """Goes on to the next round; says so when that has been for nothing several times. Raises InvalidInputError."""
    print(f"client {client.share.client}: refused: {error}", flush=True)  # noqa: T201  # the worker's log
    client.refused += 1
    if client.refused >= _MOST_REFUSED:
        raise InvalidInputError(
            f"client {client.share.client}: {client.refused} updates were refused one after the other; the last: "
            f"{error.message}",
            hint=error.hint or "look at this client's code and data",
            reason="UPDATES_REFUSED",
        )


async def _again(node: _Node, client: _Client, error: grpc.aio.AioRpcError) -> None:
    """Waits before the next try. Raises StoppedError, UnavailableError when there is no aggregator for too long."""
    if error.code() not in _AWAY:
        raise from_call(error)
    node.process.seen()
    if node.process.stopping():
        raise local.StoppedError
    away = time.monotonic() - node.heard_s
    if away > _AWAY_S:
        raise UnavailableError(
            f"client {client.share.client}: the aggregator at {node.process.task.rendezvous} has been away for "
            f"{away:.0f} s: {error.details()}",
            hint="rank 0's log says what became of it",
            reason="PEER_LOST",
        ) from error
    await asyncio.sleep(client.backoff.next_delay())


def _point(node: _Node, client: _Client, said: federated_pb2.Round, trained: local.Trained, seconds: float) -> None:
    samples = len(client.share.learn) * said.local_epochs
    node.process.events.point(
        said.number,
        trained.loss,
        seconds,
        {**trained.values, "client": float(client.share.client)},
        attempt=node.process.task.attempt,
        samples_per_s=samples / seconds if seconds else 0.0,
    )


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


def _channel(target: str, tls: TlsSettings) -> grpc.aio.Channel:
    return aio_channel(target, credentials=channel_credentials(tls))


def _first(group: BaseException) -> BaseException:
    """One error of a group: the first that is none itself."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group

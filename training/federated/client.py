"""The clients of one node: each takes rounds from the aggregator, trains on its own data, and sends what changed.

They wait side by side and train one after the other. The aggregator may be away for a while: they come again. After the
last round each measures the last model on the samples that it holds out, where data is its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc.aio
import numpy as np

from aimesh.training.v1 import federated_pb2
from meshkit.channel import aio_channel
from meshkit.errors import InvalidInputError
from meshkit.tls import channel_credentials
from training.building import build
from training.data.order import Indices
from training.federated import answers, local
from training.federated.aggregator import tls_of_environment
from training.federated.link import Aggregator
from training.federated.node import Client, Node
from training.federated.population import shares
from training.federated.variates import Variates
from training.federated.wire import CONTROL, Array, Tensors, layout_of, with_control
from training.process import Process
from training.run.finish import evaluate
from training.run.group import Group, device_of


def take_part(process: Process) -> None:
    """Takes part in a job until it is over or the process is told to stop. Raises what goes wrong."""
    process.seen("loading the trainer and its data")
    entry = build(process.task.spec, process.folder.root)
    clients = [Client(share) for share in shares(process.task, entry)]
    device = device_of()
    process.seen("making the model")
    model = entry.model().to(device)
    variates = Variates(process.folder.root.parent / "clients")
    asyncio.run(_all(Node(process, entry, model, Group(0, 1, device), variates), clients))
    process.events.done(max(client.last_round for client in clients), stopped=process.stopping())


async def _all(node: Node, clients: list[Client]) -> None:
    """Carries all clients through."""
    credentials = channel_credentials(tls_of_environment())
    async with aio_channel(node.process.task.rendezvous, credentials=credentials) as channel:
        aggregator = Aggregator(node.process, channel)
        try:
            async with asyncio.TaskGroup() as tasks:
                for client in clients:
                    tasks.create_task(_rounds(node, aggregator, client))
        except BaseExceptionGroup as several:
            error = _first(several)
            if not isinstance(error, local.StoppedError):
                raise error from several


async def _rounds(node: Node, aggregator: Aggregator, client: Client) -> None:
    """Round after round until the job is over. Raises StoppedError when the process is to end."""
    while True:
        try:
            if not await _round(node, aggregator, client):
                return
            client.backoff.reset()
        except grpc.aio.AioRpcError as error:
            await aggregator.again(client, error)


async def _round(node: Node, aggregator: Aggregator, client: Client) -> bool:
    """Waits for a round and takes part in it; False when the job is over. Raises AioRpcError."""
    call = aggregator.ask(client)
    try:
        first = await aggregator.first(call)
        if first.over:
            return False
        async with node.turn:
            answer = await _work(node, aggregator, client, first.round, call)
    finally:
        call.cancel()
    await answer()
    return True


async def _work(
    node: Node, aggregator: Aggregator, client: Client, said: federated_pb2.Round, call: Any
) -> Callable[[], Awaitable[None]]:
    """Trains the round's model, or measures it when it is the last; gives what sends the answer. Raises AioRpcError."""
    try:
        given = await _given(node, aggregator, client, said, call)
        if said.evaluation:
            values = await asyncio.to_thread(_measure, node, client, given)
            return partial(answers.send_values, node, aggregator, client, values)
        trained, own = await asyncio.to_thread(_train, node, client, said, given)
        return partial(answers.send_update, node, aggregator, client, said, trained, own)
    except InvalidInputError as error:
        await answers.give_up(node, aggregator, client, said, error)
        raise


async def _given(node: Node, aggregator: Aggregator, client: Client, said: federated_pb2.Round, call: Any) -> Tensors:
    """The round's tensors. Raises AioRpcError, InvalidInputError (BAD_UPDATE) when they are not this trainer's."""
    layout = layout_of(local.travelling(node.model))
    if said.scaffold:
        layout = with_control(layout, local.trained_names(node.model))
    try:
        return await aggregator.model(call, layout)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the model of job {node.process.task.job} is another than client {client.number}'s trainer makes: "
            f"{error.message}",
            hint="the trainer's model must not depend on what data a node has",
            reason=error.reason,
        ) from None


def _train(
    node: Node, client: Client, said: federated_pb2.Round, given: Tensors
) -> tuple[local.Trained, dict[str, Array]]:
    """Evaluates the round's model where samples are held out, trains it, keeps the variate; runs in a thread."""
    began = time.monotonic()
    node.process.place.doing = f"training in round {said.number} as client {client.number}"
    own: dict[str, Array] = {}
    if said.scaffold:
        zeros = {
            name.removeprefix(CONTROL): np.zeros_like(array)
            for name, array in given.items()
            if name.startswith(CONTROL)
        }
        own = node.variates.load(client.number, said.counted, zeros)
    values = _measure(node, client, given)

    def seen(step: int, batch: Indices) -> bool:
        node.process.seen()
        node.process.place.step, node.process.place.batch = step, batch
        return node.process.stopping()

    trained = local.train(node.entry, node.model, client.share.learn, said, given, own, node.group, seen)
    trained = local.with_values(trained, values)
    node.process.place.step = 0
    if said.scaffold:
        node.variates.save(client.number, said.number, said.counted, trained.control)
    answers.point(node, client, said, trained, time.monotonic() - began)
    return trained, own


def _measure(node: Node, client: Client, given: Tensors) -> dict[str, float]:
    """What a round's model does on the samples that the client holds out; nothing where it holds none."""
    if not len(client.share.kept):
        return {}
    local.load(node.model, {name: array for name, array in given.items() if not name.startswith(CONTROL)})
    return evaluate(node.entry, client.share.kept, node.model, node.group, node.process)


def _first(group: BaseException) -> BaseException:
    """One error of a group: the first that is none itself."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group

"""An aggregator that dies in the middle of a round, poisoned updates, clients that are late: as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from safetensors.numpy import load_file

from aimesh.training.v1 import federated_pb2, federated_pb2_grpc, training_pb2
from meshkit.channel import aio_channel
from meshkit.tls import TlsSettings, channel_credentials
from tests.certificates import TestAuthority
from tests.mesh.training.federated import job
from tests.mesh.training.workers import Worker, until
from tests.unit.inference.needs import without_torch
from tests.unit.training.federated.support import MODEL, desk, update
from training.federated.service import FederatedRounds, federated_server
from training.federated.wire import Array, Tensors, parts_of

pytestmark = without_torch
ROUNDS = 6
SPEC = training_pb2.JobSpec(
    task="classifier",
    data=training_pb2.Data(
        builtin="digits", holdout=0.2, partition=training_pb2.Partition(kind="dirichlet", alpha=0.5)
    ),
    hyperparameters={"hidden": "[16]", "optimizer": "sgd", "momentum": "0", "lr": "0.3"},
    steps=ROUNDS,
    batch_size=16,
    seed=3,
    federated=training_pb2.Federated(
        aggregation=training_pb2.AGGREGATION_SCAFFOLD, clients=4, clients_per_node=2, min_clients=4
    ),
    output=training_pb2.Output(discard=True),
)


def rounds(worker: Worker) -> list[int]:
    return [event.checkpoint.step for event in worker.events() if event.HasField("checkpoint")]


def trained(worker: Worker, number: int) -> set[float]:
    """The clients of a process that have trained in a round."""
    points = [event.point for event in worker.events() if event.HasField("point")]
    return {point.values["client"] for point in points if point.step == number}


def test_killed_in_the_middle_of_a_round_no_round_is_lost_and_the_model_is_the_same(tmp_path: Path) -> None:
    with job(tmp_path / "whole", SPEC, 2) as whole:
        aggregator = whole.aggregate()
        clients = [whole.client(rank) for rank in range(2)]
        assert [worker.wait() for worker in (aggregator, *clients)] == [0, 0, 0]
        assert rounds(aggregator) == list(range(1, ROUNDS + 1))
        done = aggregator.done()
        assert done.step == ROUNDS
        assert done.values["accuracy"] > 0.7
        expected = load_file(aggregator.folder / "checkpoints" / str(ROUNDS) / "model.safetensors")
        losses = aggregator.losses()
    with job(tmp_path / "killed", SPEC, 2) as killed:
        first = killed.aggregate()
        port = int(killed.task.rendezvous.rpartition(":")[2])
        clients = [killed.client(rank) for rank in range(2)]
        until(lambda: rounds(first)[1:], what="two rounds")
        assert clients[1].process.pid is not None
        os.kill(clients[1].process.pid, signal.SIGSTOP)
        # Two of four answer the round under way, which can neither end nor begin anew.
        until(lambda: trained(clients[0], rounds(first)[-1] + 1) == {0, 1}, what="half of a round")
        first.process.kill()
        first.process.join()
        os.kill(clients[1].process.pid, signal.SIGCONT)
        made = rounds(first)
        assert made[-1] < ROUNDS, "it was to be killed before its end"
        second = killed.aggregate(2, port=port, resume=first.folder / "checkpoints" / str(made[-1]))
        assert [worker.wait() for worker in (second, *clients)] == [0, 0, 0]
        assert rounds(second) == list(range(made[-1] + 1, ROUNDS + 1))
        ended = load_file(second.folder / "checkpoints" / str(ROUNDS) / "model.safetensors")
        again = {**first.losses(), **second.losses()}
    assert list(again) == list(losses)
    np.testing.assert_allclose(list(again.values()), list(losses.values()), rtol=1e-6)
    for name, array in expected.items():
        np.testing.assert_allclose(ended[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


@asynccontextmanager
async def serving(rounds: FederatedRounds, tls: TlsSettings | None = None) -> AsyncIterator[str]:
    server = federated_server("127.0.0.1:0", rounds, tls or TlsSettings())
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop(0)


class Caller:
    """A client that sends what it is told to."""

    def __init__(self, target: str, client: int, tls: TlsSettings | None = None) -> None:
        self.client = client
        self.channel = aio_channel(target, credentials=channel_credentials(tls) if tls else None)
        self.stub: federated_pb2_grpc.FederatedServiceAsyncStub = federated_pb2_grpc.FederatedServiceStub(self.channel)

    async def take(self) -> list[federated_pb2.TakeRoundResponse]:
        request = federated_pb2.TakeRoundRequest(job="j", client=self.client, samples=10)
        return [answer async for answer in self.stub.TakeRound(request, timeout=20)]

    async def send(self, tensors: Tensors, number: int = 1) -> int:
        async def requests() -> AsyncIterator[federated_pb2.SendUpdateRequest]:
            header = federated_pb2.UpdateHeader(job="j", client=self.client, round=number, samples=10, loss=1.0)
            yield federated_pb2.SendUpdateRequest(header=header)
            for part in parts_of(tensors):
                yield federated_pb2.SendUpdateRequest(part=part)

        return (await self.stub.SendUpdate(requests(), timeout=20)).received


def poisoned(name: str, change: Callable[[Array], Array]) -> dict[str, Array]:
    tensors = update(1.0)
    tensors[name] = change(tensors[name])
    return tensors


async def test_poisoned_updates_are_refused_by_name_and_the_round_goes_on(tmp_path: Path) -> None:
    """NaN, wrong shape, wrong keys, another round, another's client: each answer says over gRPC what is wrong."""
    rounds = FederatedRounds(desk(tmp_path, clients=5, min_clients=1), [""] * 5)
    async with serving(rounds) as target:
        callers = [Caller(target, client) for client in range(5)]
        for caller in callers:
            first, *parts = await caller.take()
            assert first.round.number == 1
            assert [answer.part.name for answer in parts] == list(MODEL)
        bad = [
            (0, poisoned("a", lambda array: array * np.nan), 1, "a FP32 [3, 2]: element 0 is nan"),
            (1, poisoned("b", lambda array: array[:2]), 1, "b FP64 [4] came with shape [2]"),
            (2, {"x": update(1.0)["a"]}, 1, "tensor 'x' came where 'a' belongs"),
            (3, update(1.0), 7, "an update of round 7 came in round 1"),
        ]
        for client, tensors, number, words in bad:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await callers[client].send(tensors, number)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert words in str(raised.value.details())
        with pytest.raises(grpc.aio.AioRpcError, match="client 9 is not one of the 5"):
            await Caller(target, 9).take()
        assert await callers[4].send(update(1.0)) == 1
        assert not rounds.desk.ready(0), "client 3 sent a round that is not: it may still send this one"
        assert await callers[3].send(update(1.0)) == 2
        assert rounds.desk.ready(0)
        rounds.advance(await rounds.close())
        assert rounds.desk.number == 2
        np.testing.assert_allclose(rounds.desk.state.model["a"], 1.0)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await callers[0].send(update(1.0), 1)
        assert raised.value.code() == grpc.StatusCode.ABORTED
        waiting = asyncio.ensure_future(callers[0].take())
        assert (await waiting)[0].round.number == 2
        rounds.finish()
        assert [answer.over for answer in await callers[1].take()] == [True]
        for caller in callers:
            await caller.channel.close(None)
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir())), "no update is left on the disk"


async def test_with_tls_a_node_speaks_for_its_own_clients_only(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path / "ca")
    node = authority.issue("node", "node-0")
    rounds = FederatedRounds(desk(tmp_path / "updates", clients=2), ["node-0", "node-1"])
    async with serving(rounds, node) as target:
        own, others = Caller(target, 0, node), Caller(target, 1, node)
        assert (await own.take())[0].round.number == 1
        with pytest.raises(grpc.aio.AioRpcError, match="may not speak for node 'node-1'"):
            await others.take()
        plain = Caller(target, 0)
        with pytest.raises(grpc.aio.AioRpcError):
            await plain.take()
        for caller in (own, others, plain):
            await caller.channel.close(None)

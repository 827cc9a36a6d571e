"""What a client of a federated job answers: its update, what it measured, or why it cannot; and its own point."""

from __future__ import annotations

import contextlib

from aimesh.training.v1 import federated_pb2
from meshkit.errors import InvalidInputError
from training.federated import local
from training.federated.link import Aggregator
from training.federated.node import Client, Node
from training.federated.wire import CONTROL, Tensors

_MOST_REFUSED = 3
"""Updates refused one after the other before a client says that it is wrong."""


async def send_update(
    node: Node,
    aggregator: Aggregator,
    client: Client,
    said: federated_pb2.Round,
    trained: local.Trained,
    own: Tensors,
) -> None:
    """Sends the update until it is taken, refused, or too late. Raises InvalidInputError when it is always refused."""
    header = federated_pb2.UpdateHeader(
        job=node.process.task.job,
        client=client.number,
        round=said.number,
        samples=len(client.share.learn),
        loss=trained.loss,
        steps=trained.steps,
        values=trained.values,
    )
    changes = {CONTROL + name: trained.control[name] - own[name] for name in trained.control}
    try:
        if await aggregator.send_update(client, header, {**trained.difference, **changes}):
            client.last_round, client.refused = said.number, 0
    except InvalidInputError as error:
        _refused(header, client, error)


async def send_values(node: Node, aggregator: Aggregator, client: Client, values: dict[str, float]) -> None:
    """Sends what was measured of the last model until it is taken, refused, or too late."""
    request = federated_pb2.SendEvaluationRequest(
        job=node.process.task.job, client=client.number, samples=len(client.share.kept), values=values
    )
    try:
        await aggregator.send_evaluation(client, request)
    except InvalidInputError as error:
        print(f"job {request.job}, evaluation, refused: {error}", flush=True)  # noqa: T201  # the worker's log


async def give_up(
    node: Node, aggregator: Aggregator, client: Client, said: federated_pb2.Round, error: InvalidInputError
) -> None:
    """Says why no update comes, so that nobody waits for one. The last model asks for none."""
    if said.evaluation:
        return
    header = federated_pb2.UpdateHeader(
        job=node.process.task.job, client=client.number, round=said.number, error=error.message
    )
    with contextlib.suppress(InvalidInputError):  # that it is refused is what it is for
        await aggregator.send_update(client, header, {})


def _refused(header: federated_pb2.UpdateHeader, client: Client, error: InvalidInputError) -> None:
    """Goes on to the next round; says so when that has been for nothing several times. Raises InvalidInputError."""
    print(f"job {header.job}, round {header.round}, client {client.number}: update refused: {error}", flush=True)  # noqa: T201
    client.refused += 1
    if client.refused >= _MOST_REFUSED:
        raise InvalidInputError(
            f"client {client.number}: {client.refused} updates were refused one after the other; the last: "
            f"{error.message}",
            hint=error.hint or "look at this client's code and data",
            reason="UPDATES_REFUSED",
        )


def point(node: Node, client: Client, said: federated_pb2.Round, trained: local.Trained, seconds: float) -> None:
    """What a client did in a round, in its own events: the mean loss while it trained, and what it had measured."""
    samples = len(client.share.learn) * said.local_epochs
    node.process.events.point(
        said.number,
        trained.loss,
        seconds,
        {**trained.values, "client": float(client.number)},
        attempt=node.process.task.attempt,
        samples_per_s=samples / seconds if seconds else 0.0,
    )

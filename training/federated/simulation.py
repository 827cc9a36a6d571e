"""A federated job whose clients all live in one process, against the aggregator's own rounds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aimesh.training.v1 import federated_pb2, training_pb2
from meshkit.errors import InvalidInputError
from training.building import build
from training.federated import local
from training.federated.population import Share, learn_and_kept, shares
from training.federated.rounds import Desk
from training.federated.settings import settings_of
from training.federated.state import fresh
from training.federated.underway import Closed
from training.federated.wire import CONTROL, Array, Tensors, parts_of
from training.run.finish import evaluate
from training.run.group import Group, device_of
from training.trainer import Entry


@dataclass
class Course:
    """What came of a simulation, by round."""

    train_losses: list[float] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)
    """Measured on held-out samples after each round."""
    round_s: list[float] = field(default_factory=list)
    sent_bytes: list[int] = field(default_factory=list)
    """Of tensors, both ways, of all clients."""
    refused: int = 0
    epsilon: float = float("inf")
    failed: str = ""
    """Why it ended before its last round, as when a client's loss was no number."""


class Simulation:
    """A job whose clients all live in this process."""

    def __init__(self, spec: training_pb2.JobSpec, folder: Path, noise: np.random.Generator | None = None) -> None:
        """`spec.federated.clients` clients; nothing of it is a process. Raises InvalidInputError."""
        task = training_pb2.TrainingTask(job="simulation", spec=spec)
        task.spec.federated.clients_per_node = max(1, spec.federated.clients)
        task.workers.add(node="here")
        self.entry: Entry = build(task.spec, folder)
        self.shares: list[Share] = shares(task, self.entry)
        self.kept = learn_and_kept(task.spec, self.entry)[1]
        self.model = self.entry.model()
        self.group = Group(0, 1, device_of())
        self.model.to(self.group.device)
        trained = local.trained_names(self.model)
        settings = settings_of(task, len(self.shares))
        begun = fresh(local.travelling(self.model), trained, settings)
        self.desk = Desk(settings, begun, trained, folder / "updates", noise or np.random.default_rng())
        self._own: dict[int, Tensors] = {}

    def round(self, poison: Callable[[int, dict[str, Array]], None] | None = None) -> tuple[Closed, int]:
        """One round of all clients that are chosen; gives what came of it and the bytes of tensors that travelled.

        `poison` may change what a client sends. Raises InvalidInputError.
        """
        sent, tried = 0, set[int]()
        while not self.desk.ready(0.0):
            waiting = [
                (share, said)
                for share in self.shares
                if share.client not in tried and (said := self.desk.take(share.client, len(share.learn), 0.0))
            ]
            if not waiting:
                raise InvalidInputError("a round needs more clients than there are", reason="TOO_FEW_CLIENTS")
            for share, said in waiting:
                tried.add(share.client)
                sent += self._client(share, said, poison)
        closed = self.desk.close()
        self.desk.advance(closed, 0.0)
        return closed, sent

    def measure(self) -> dict[str, float]:
        """What the model of now does on held-out samples."""
        local.load(self.model, self.desk.state.model)
        return evaluate(self.entry, self.kept, self.model, self.group)

    def _client(
        self, share: Share, said: federated_pb2.Round, poison: Callable[[int, dict[str, Array]], None] | None
    ) -> int:
        given = self.desk.tensors()
        own = self._own.get(share.client) or {
            name: np.zeros_like(array) for name, array in self.desk.state.control.items()
        }
        trained = local.train(self.entry, self.model, share.learn, said, given, own, self.group)
        changes = {CONTROL + name: trained.control[name] - own[name] for name in trained.control}
        update: dict[str, Array] = {**trained.difference, **changes}
        if poison is not None:
            poison(share.client, update)
        header = federated_pb2.UpdateHeader(
            job="simulation",
            client=share.client,
            round=said.number,
            samples=len(share.learn),
            loss=trained.loss,
            steps=trained.steps,
        )
        sent = sum(array.nbytes for array in given.values())
        try:
            sent += self._send(header, update)
        except InvalidInputError as error:
            self.desk.refuse(header, error.message)
        else:
            self._own[share.client] = trained.control
        return sent

    def _send(self, header: federated_pb2.UpdateHeader, update: Tensors) -> int:
        incoming = self.desk.begin(header)
        if incoming is None:
            return 0
        try:
            for part in parts_of(update):
                incoming.take(part)
            self.desk.add(incoming.finish())
        except InvalidInputError:
            incoming.drop()
            raise
        return sum(array.nbytes for array in update.values())


def simulate(spec: training_pb2.JobSpec) -> Course:
    """All rounds of a job. A client whose loss is no number ends it: `failed` says so."""
    course = Course()
    with tempfile.TemporaryDirectory(prefix="aimesh-federated-") as folder:
        simulation = Simulation(spec, Path(folder))
        for _ in range(int(spec.steps)):
            began = time.monotonic()
            try:
                closed, sent = simulation.round()
            except InvalidInputError as error:
                course.failed = str(error)
                break
            course.round_s.append(time.monotonic() - began)
            course.sent_bytes.append(sent)
            course.train_losses.append(closed.state.loss)
            course.refused += len(closed.refused)
            course.epsilon = closed.epsilon
            course.values.append(simulation.measure())
    return course

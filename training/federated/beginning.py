"""What an aggregator begins with: the trainer, the first model or a checkpoint's, and who its clients are."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.building import build
from training.data.order import Order, total_steps
from training.federated import local, state
from training.federated.evaluation import Evaluated
from training.federated.population import clients_there, learn_and_kept
from training.federated.rounds import Desk
from training.federated.service import FederatedRounds
from training.federated.settings import settings_of
from training.process import Process
from training.run.course import Course
from training.trainer import Entry


@dataclass
class Run:
    """An aggregator under way."""

    process: Process
    entry: Entry
    model: nn.Module
    course: Course
    rounds: FederatedRounds
    samples: int = 0
    """Gone through by clients in this attempt."""
    evaluated: Evaluated | None = None
    """What clients say of the last model, where data is their own."""
    began_s: float = field(default_factory=time.monotonic)

    @property
    def desk(self) -> Desk:
        """Where rounds are given out."""
        return self.rounds.desk


def prepare(process: Process) -> Run:
    """Builds all that a run needs. Raises InvalidInputError, DataLossError."""
    task, folder = process.task, process.folder
    entry = build(task.spec, folder.root)
    learn, kept = learn_and_kept(task.spec, entry)
    model = entry.model()
    trained = local.trained_names(model)
    ranges = clients_there(task)
    settings = settings_of(task, ranges[-1].stop)
    begun = state.fresh(local.travelling(model), trained, settings)
    if task.HasField("resume"):
        begun = _resumed(process, begun)
    if settings.private:
        begun = replace(begun, releases=begun.releases + unrecorded(task))
    shutil.rmtree(folder.root / "updates", ignore_errors=True)
    desk = Desk(settings, begun, trained, folder.root / "updates", np.random.default_rng())
    nodes = [task.workers[rank].node if task.workers else "" for rank, mine in enumerate(ranges) for _ in mine]
    course = Course(
        learn=learn,
        kept=kept,
        order=Order(task.spec.seed, len(learn), task.spec.batch_size or 32),
        steps=total_steps(task.spec, len(learn)),
        rank=0,
        speeds=[0.0],
    )
    return Run(process, entry, model, course, FederatedRounds(desk, nodes))


def unrecorded(task: training_pb2.TrainingTask) -> int:
    """Most releases of a private job that no checkpoint counts: each attempt since the one that wrote the last may have
    given out the round after it."""
    return max(0, task.attempt - max(1, task.resume.attempt))


def _resumed(process: Process, begun: state.Global) -> state.Global:
    """The state of the task's checkpoint. Raises InvalidInputError (BAD_CHECKPOINT) when it is another's."""
    process.seen("reading the checkpoint")
    found = state.read(process.folder.resume, begun)
    wanted = process.task.resume.step
    if found.round != wanted:
        raise InvalidInputError(
            f"the checkpoint in {process.folder.resume} is of round {found.round}, not {wanted}",
            hint="its files were mixed up with another's",
            reason="BAD_CHECKPOINT",
        )
    return found

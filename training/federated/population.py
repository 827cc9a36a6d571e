"""Who the clients of a job are, and which samples each has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.data.order import holdout
from training.data.samples import Samples, Subset
from training.federated.partition import labels_of, partition
from training.plan.federated import clients_of
from training.trainer import Entry


@dataclass(frozen=True)
class Share:
    """One client's data."""

    client: int
    learn: Subset
    kept: Subset
    """Held out by the client itself: only where its data is its own."""


def clients_there(task: training_pb2.TrainingTask) -> list[range]:
    """The clients of each rank. With fewer nodes than were asked for, the last clients are not there.

    A client's number stays its data's: of one set each has its part of as many as were asked for.
    """
    nodes, per_node = max(len(task.workers), 1), task.spec.federated.clients_per_node or 1
    asked = task.spec.federated.clients or nodes * per_node
    return clients_of(min(asked, nodes * per_node), nodes, per_node)


def has_own_data(spec: training_pb2.JobSpec) -> bool:
    """Whether each node learns from data of its own, rather than from a part of one set."""
    return bool(spec.data.path) and not spec.data.HasField("partition")


def learn_and_kept(spec: training_pb2.JobSpec, entry: Entry) -> tuple[Subset, Subset]:
    """The set that this process sees, in samples to learn from and samples held out. Raises InvalidInputError."""
    samples = _samples(entry)
    learn, kept = holdout(spec.seed, len(samples), spec.data.holdout)
    return Subset(samples, learn), Subset(samples, kept)


def shares(task: training_pb2.TrainingTask, entry: Entry) -> list[Share]:
    """The data of each client of this task's rank. Raises InvalidInputError (BAD_DATA)."""
    ranges = clients_there(task)
    mine = ranges[task.rank]
    spec = task.spec
    learn, kept = learn_and_kept(spec, entry)
    own = has_own_data(spec)
    total = len(mine) if own else max(spec.federated.clients, ranges[-1].stop)
    first = mine.start if own else 0
    parts = partition(spec.data.partition, labels_of(learn), len(learn), total, spec.seed)
    held = np.array_split(np.arange(len(kept)), len(mine)) if own else [np.arange(0)] * len(mine)
    return [
        Share(
            client,
            Subset(learn.samples, learn.indices[parts[client - first]]),
            Subset(kept.samples, kept.indices[those]),
        )
        for client, those in zip(mine, held, strict=True)
    ]


def _samples(entry: Entry) -> Samples:
    samples = entry.samples()
    if samples is None or len(samples) == 0:
        raise InvalidInputError(
            f"trainer {entry.name}: no samples: {'it names no data' if samples is None else 'its data is empty'}",
            hint="set data.builtin, data.shards or data.path, or give the trainer data()",
            reason="BAD_DATA",
        )
    return samples

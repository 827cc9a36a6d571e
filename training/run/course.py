"""What a worker trains and on what, worked out before the first step: the same on every worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.data.order import Indices, Order, holdout, part, total_steps
from training.data.samples import Subset
from training.run.group import Group
from training.trainer import Entry

_ONE = slice(0, 1)


@dataclass(frozen=True)
class Portion:
    """What a worker takes of one step's batch."""

    samples: Indices
    """At least one, so that every worker goes through the same motions."""
    weight: float
    """Its size over the batch's; 0 for a worker for which a small batch has nothing."""
    size: int
    """Samples that count."""


@dataclass(frozen=True)
class Course:
    """The steps of a job as one worker sees them."""

    learn: Subset
    kept: Subset
    """Held out."""
    order: Order
    steps: int
    rank: int
    speeds: Sequence[float]

    def portion(self, step: int, *, data_parallel: bool) -> Portion:
        """This worker's samples of a step, counted from 0."""
        batch = self.order.batch(step)
        if not data_parallel:
            return Portion(batch, 1.0, len(batch))
        mine = part(batch, self.rank, self.speeds)
        if not len(mine):
            return Portion(batch[_ONE], 0.0, 0)
        return Portion(mine, len(mine) / len(batch), len(mine))

    def numbers(self, portion: Portion) -> Indices:
        """The samples' numbers in the job's data, for messages."""
        return self.learn.indices[portion.samples]


def course_of(task: training_pb2.TrainingTask, entry: Entry) -> Course:
    """The course of a task. Raises InvalidInputError (BAD_DATA) without samples, or not with as many as planned."""
    samples = entry.samples()
    if samples is None or len(samples) == 0:
        raise InvalidInputError(
            f"trainer {entry.name}: no samples: {'it names no data' if samples is None else 'its data is empty'}",
            hint="set data.builtin, data.shards or data.path, or give the trainer data()",
            reason="BAD_DATA",
        )
    spec = task.spec
    learn, kept = holdout(spec.seed, len(samples), spec.data.holdout)
    _check_planned(task, len(learn), len(kept))
    return Course(
        learn=Subset(samples, learn),
        kept=Subset(samples, kept),
        order=Order(spec.seed, len(learn), spec.batch_size or 32),
        steps=total_steps(spec, len(learn)),
        rank=task.rank,
        speeds=[worker.speed for worker in task.workers] or [0.0],
    )


def _check_planned(task: training_pb2.TrainingTask, learn: int, kept: int) -> None:
    """Workers that do not go through the same samples would wait for each other in vain, or share them out wrongly."""
    planned = task.plan.samples, task.plan.holdout
    if task.plan.samples and planned != (learn, kept):
        here = task.workers[task.rank].node if task.workers else "this node"
        raise InvalidInputError(
            f"{here} has {learn + kept} samples, the job was planned for {sum(planned)}",
            hint="all nodes must have the same files under data.path; a trainer's data() gives all workers the same",
            reason="BAD_DATA",
        )


def on_device(batch: Any, group: Group) -> Any:
    """A batch with its tensors on the worker's device."""
    from torch.utils import _pytree as pytree

    if group.device.type == "cpu":
        return batch
    return pytree.tree_map(lambda one: one.to(group.device, non_blocking=True) if hasattr(one, "to") else one, batch)

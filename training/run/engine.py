"""What the loop asks of an engine: one class each for single, ddp, fsdp, tensor and pipeline, all with these methods.

An engine owns the model and the optimizer of its worker. The loop owns everything else: the order of samples, the
seeds, the schedule of learning rates, metrics, checkpoints, the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.run.group import Group, Sum
from training.trainer import Entry


class Engine(Protocol):
    """How the workers of a job share the work of a step. Every worker calls every method at the same point."""

    data_parallel: bool
    """Whether each worker takes samples of its own from a batch; otherwise each is given the whole batch."""

    optimizer: torch.optim.Optimizer
    """Of this worker's parameters; there after `prepare`."""

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """Puts the model on the worker's device, shares it out and makes the optimizer.

        `model` is whole, on the CPU, and has the same weights on every worker. Raises InvalidInputError when it cannot
        be shared out this way, with the reason.
        """
        ...

    def backward(self, batch: Any, weight: float, said: Sequence[float]) -> Sum:
        """Gradients of one batch, from zero, ready for `update` (already reduced over the workers).

        `batch` is on the worker's device. `weight` is its size over the size of the whole batch of the step, so that
        the sum of weight * mean loss over data-parallel workers is the mean loss of the whole batch; it is 0 where a
        worker has no sample of a small batch, which is then given one of another's. Engines that are not data-parallel
        get weight 1 on each worker. Gives this worker's part of the step's mean loss, then what it has to say (SAID
        numbers), summed over the workers: the sum of the parts is the mean loss of the whole batch (so of a
        tensor-parallel step rank 0 gives it and others 0).
        """
        ...

    def update(self) -> float:
        """Clips the gradients where the trainer says so, and makes the optimizer's step.

        Returns the length of the whole gradient before it was clipped, the same on every worker.
        """
        ...

    def compute_s(self) -> float:
        """Seconds that this worker's own work took in the last `backward`, waiting for others left out; 0 if unknown.

        Unequal shares are computed from it, and stragglers seen.
        """
        ...

    def state(self) -> dict[str, Any]:
        """`{"model": ..., "optimizer": ...}` by names that are the same under every engine and world size.

        As torch.distributed.checkpoint.state_dict.get_state_dict has them: tensors may be DTensors. A loader writes
        into these tensors in place; then `load` is called with the same structure. An engine whose workers
        each have some of the names adds "shapes": see training.checkpoint.api.
        """
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave, after a loader has filled it."""
        ...

    def full_model(self) -> nn.Module | None:
        """On rank 0 the whole model, plain, as the trainer made it, with the weights of now; None elsewhere."""
        ...


def engine_for(
    strategy: training_pb2.Strategy.ValueType, plan: training_pb2.JobPlan | None = None, workers: int = 0
) -> Engine:
    """The engine of a strategy. Raises InvalidInputError for those that are none (auto, federated).

    A pipeline is cut by the costs of layers that the plan has; without a plan by their parameters. One worker, all that
    others may have left a job, trains alone whatever the strategy: a checkpoint is the same under each.
    """
    if strategy == training_pb2.STRATEGY_SINGLE or workers == 1:
        from training.run.single import SingleEngine

        return SingleEngine()
    if strategy == training_pb2.STRATEGY_DDP:
        from training.run.ddp import DdpEngine

        return DdpEngine()
    if strategy == training_pb2.STRATEGY_FSDP:
        from training.parallel.fsdp import FsdpEngine

        return FsdpEngine()
    if strategy == training_pb2.STRATEGY_TENSOR:
        from training.parallel.tensor import TensorEngine

        return TensorEngine()
    if strategy == training_pb2.STRATEGY_PIPELINE:
        from training.parallel.pipeline import PipelineEngine

        return PipelineEngine(plan)
    raise InvalidInputError(
        f"strategy {training_pb2.Strategy.Name(strategy)} is none that workers can run", hint="the planner decides it"
    )

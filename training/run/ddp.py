"""Data parallelism: each worker has the whole model and a part of each batch; gradients are weighted by samples.

torch's DistributedDataParallel averages gradients over workers, so each multiplies its loss by workers * its samples /
samples of the batch: the mean of those is the gradient of the whole batch, however unequal the parts are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.run.group import SAID, Group, Sum
from training.run.whole import WholeModel
from training.trainer import Entry


class _Loss(nn.Module):
    """Model and loss as one module: its forward is what DDP wraps, so a trainer may use its model as it likes.

    On the CPU, which carries the messages itself, what the workers say to each other travels with their gradients, as
    that of `told`: a message of its own took a tenth of a small model's step.
    """

    def __init__(self, trainer: Entry, model: nn.Module, told: nn.Parameter | None) -> None:
        super().__init__()
        self.model = model
        self.trainer = trainer
        self.told = told
        self.part = torch.zeros(())
        self.began = 0.0

    def forward(self, batch: Any, weight: float, said: Sequence[float]) -> torch.Tensor:
        """What the way back starts from: this worker's part of the loss."""
        self.began = time.monotonic()
        loss = self.trainer.loss(self.model, batch) * weight
        self.part = loss.detach()
        if self.told is None:
            return loss
        own = torch.tensor([self.part.item(), *said])
        return loss + (self.told * own).sum()


class DdpEngine(WholeModel):
    """DistributedDataParallel over gloo or NCCL."""

    data_parallel = True

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """See Engine."""
        self.place(trainer, model, group)
        self._told = nn.Parameter(torch.zeros(1 + SAID)) if group.device.type == "cpu" else None
        self._loss = _Loss(trainer, self.model, self._told)
        self._parallel = DistributedDataParallel(
            self._loss, find_unused_parameters=trainer.unused_parameters, gradient_as_bucket_view=True
        )
        self._last = 0.0
        # The way back ends at the first parameters: from there on a worker only waits for the others.
        first: Any = self._trained[0]
        first.register_post_accumulate_grad_hook(self._own_work_ends)

    def backward(self, batch: Any, weight: float, said: Sequence[float]) -> Sum:
        """See Engine."""
        self._parallel.zero_grad(set_to_none=True)
        torch.autograd.backward(self._parallel(batch, weight, said) * self.group.world_size)
        own = (self._loss.part.item() if weight else 0.0, *said)
        if self._told is None:
            return self.group.start_sum(own)
        assert self._told.grad is not None
        return Sum(own, self._told.grad, None)

    def compute_s(self) -> float:
        """See Engine."""
        return max(self._last - self._loss.began, 0.0)

    def _own_work_ends(self, _: torch.Tensor) -> None:
        self._last = time.monotonic()

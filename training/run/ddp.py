"""Data parallelism: each worker has the whole model and a part of each batch; gradients are weighted by samples.

torch's DistributedDataParallel averages gradients over workers, so each multiplies its loss by workers * its samples /
samples of the batch: the mean of those is the gradient of the whole batch, however unequal the parts are.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.run.group import Group
from training.run.whole import WholeModel
from training.trainer import Entry


class _Loss(nn.Module):
    """Model and loss as one module: its forward is what DDP wraps, so a trainer may use its model as it likes."""

    def __init__(self, trainer: Entry, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.trainer = trainer
        self.began = 0.0

    def forward(self, batch: Any) -> torch.Tensor:
        self.began = time.monotonic()
        return self.trainer.loss(self.model, batch)


class DdpEngine(WholeModel):
    """DistributedDataParallel over gloo or NCCL."""

    data_parallel = True

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """See Engine."""
        self.place(trainer, model, group)
        self._loss = _Loss(trainer, self.model)
        self._parallel = DistributedDataParallel(
            self._loss, find_unused_parameters=trainer.unused_parameters, gradient_as_bucket_view=True
        )
        self._last = 0.0
        # The way back ends at the first parameters: from there on a worker only waits for the others.
        first: Any = self._trained[0]
        first.register_post_accumulate_grad_hook(self._own_work_ends)

    def backward(self, batch: Any, weight: float) -> float:
        """See Engine."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._parallel(batch)
        torch.autograd.backward(loss * (weight * self.group.world_size))
        return loss.item() * weight if weight else 0.0

    def compute_s(self) -> float:
        """See Engine."""
        return max(self._last - self._loss.began, 0.0)

    def _own_work_ends(self, _: torch.Tensor) -> None:
        self._last = time.monotonic()

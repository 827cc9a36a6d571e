"""One worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from training.run.group import Group, Sum
from training.run.whole import WholeModel
from training.trainer import Entry


class SingleEngine(WholeModel):
    """Everything on one worker: what every other engine is proved against."""

    data_parallel = True

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """See Engine."""
        self.place(trainer, model, group)

    def backward(self, batch: Any, weight: float, said: Sequence[float]) -> Sum:
        """See Engine."""
        began = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.trainer.loss(self.model, batch)
        torch.autograd.backward(loss)
        value = loss.item()
        self._compute_s = time.monotonic() - began
        return self.group.start_sum([value * weight, *said])

    def compute_s(self) -> float:
        """See Engine."""
        return self._compute_s

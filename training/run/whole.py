"""What engines have in common whose workers each hold the whole model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from training.run.group import Group
from training.trainer import Entry


class WholeModel:
    """State, update and the whole model, of an engine that keeps `model`, `optimizer`, `trainer` and `group`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trainer: Entry
    group: Group

    def place(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """Puts the model on the worker's device and makes the optimizer."""
        self.trainer, self.group = trainer, group
        self.model = model.to(group.device)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = trainer.optimizer(self._trained)
        self._clip_norm = trainer.clip_norm

    def update(self) -> float:
        """See Engine."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self._clip_norm, norm)
        self.optimizer.step()
        return float(norm)

    def state(self) -> dict[str, Any]:
        """See Engine."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """See Engine."""
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def full_model(self) -> nn.Module | None:
        """See Engine."""
        return copy.deepcopy(self.model) if self.group.rank == 0 else None

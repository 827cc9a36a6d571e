"""What FSDP and tensor parallelism have in common: a model whose parameters are DTensors, or some of them."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from training.parallel.norms import clip, total_norm
from training.parallel.skeleton import fleshed, skeleton
from training.run.group import Group
from training.run.whole import WholeModel
from training.trainer import Entry


class SharedModel(WholeModel):
    """Update and the whole model, of an engine that has called `keep` before it shared the model out, `own` after."""

    def keep(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """Takes what is needed of the model while it is whole."""
        self.trainer, self.group, self.model = trainer, group, model
        self._bones = skeleton(model) if group.rank == 0 else None
        self._clip_norm = trainer.clip_norm

    def own(self) -> None:
        """Makes the optimizer of this worker's parts."""
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = self.trainer.optimizer(self._trained)

    def update(self) -> float:
        """See Engine."""
        norm = total_norm(self._trained)
        if self._clip_norm is not None:
            clip(self._trained, self._clip_norm, norm)
        self.optimizer.step()
        return float(norm)

    def full_model(self) -> nn.Module | None:
        """See Engine."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(self.model, options=whole)
        return fleshed(self._bones, tensors) if self._bones is not None else None

    def as_rank_0(self, tensors: list[torch.Tensor]) -> None:
        """Overwrites plain tensors that are to be the same on every worker by rank 0's."""
        for one in tensors:
            distributed.broadcast(one, 0)

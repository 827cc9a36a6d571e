"""Fully sharded data parallelism (FSDP2): as DDP, but parameters, gradients and optimizer state are shared out.

Parameters are gathered piece by piece when their piece is at work and dropped after it (Zhao et al., "PyTorch FSDP",
2023). Gradients are summed, not averaged: each worker weighs its loss by its samples over the batch's, so unequal
parts give the gradient of the whole batch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from meshkit.errors import InvalidInputError
from training.analyse.parts import parts_of, unsharded
from training.parallel.shared import SharedModel
from training.run.group import Group, Sum
from training.trainer import Entry


class _Loss(nn.Module):
    """Model and loss as one module: its forward is what is wrapped, so a trainer may use its model as it likes."""

    def __init__(self, trainer: Entry, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._trainer = trainer

    def forward(self, batch: Any) -> torch.Tensor:
        return self._trainer.loss(self.model, batch)


class _Waiting:
    """Seconds spent in messages; on the CPU they hold up the worker's own thread."""

    seconds = 0.0

    def timed(self, began: float) -> None:
        self.seconds += time.monotonic() - began


class _TimedGather(DefaultAllGather):
    def __init__(self, waiting: _Waiting) -> None:
        self._waiting = waiting

    def __call__(self, *args: Any, **kwargs: Any) -> distributed.Work | None:
        began = time.monotonic()
        work = super().__call__(*args, **kwargs)
        self._waiting.timed(began)
        return work


class _TimedScatter(DefaultReduceScatter):
    def __init__(self, waiting: _Waiting) -> None:
        self._waiting = waiting

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        work = super().__call__(*args, **kwargs)
        self._waiting.timed(began)
        return work


class FsdpEngine(SharedModel):
    """fully_shard over all workers; messages over gloo or NCCL."""

    data_parallel = True

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """See Engine. Raises InvalidInputError (STRATEGY_REFUSED) for a parameter that cannot be shared out."""
        if why := unsharded(model):
            hint = "change the model, or take another strategy"
            raise InvalidInputError(f"strategy fsdp cannot be used: {why}", hint=hint, reason="STRATEGY_REFUSED")
        self.keep(trainer, model, group)
        mesh = init_device_mesh(group.device.type, (group.world_size,))
        for piece in pieces(model, trainer):
            fully_shard(piece, mesh=mesh)
        self._loss = _Loss(trainer, model)
        fully_shard(self._loss, mesh=mesh)
        self._waiting = _Waiting()
        for module in self._loss.modules():
            if isinstance(module, FSDPModule):
                self._set_up(module)
        self._buffers = list(model.buffers())
        self._compute_s = 0.0
        self.own()

    def backward(self, batch: Any, weight: float, said: Sequence[float]) -> Sum:
        """See Engine."""
        self.optimizer.zero_grad(set_to_none=True)
        self.as_rank_0(self._buffers)  # as DDP does: running means are those of rank 0
        began, self._waiting.seconds = time.monotonic(), 0.0
        loss = self._loss(batch)
        torch.autograd.backward(loss * weight)
        value = loss.item() * weight if weight else 0.0
        self._compute_s = time.monotonic() - began - self._waiting.seconds
        return self.group.start_sum([value, *said])

    def compute_s(self) -> float:
        """See Engine. Unknown on a GPU, where messages and work overlap."""
        return self._compute_s if self.group.device.type == "cpu" else 0.0

    def _set_up(self, module: FSDPModule) -> None:
        # With both, gradients are summed over workers, which gloo can as well.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(self.trainer.unused_parameters, recurse=False)
        if self.group.device.type == "cpu":
            module.set_custom_all_gather(_TimedGather(self._waiting))
            module.set_custom_reduce_scatter(_TimedScatter(self._waiting))


def pieces(model: nn.Module, trainer: Entry) -> list[nn.Module]:
    """The modules that are gathered one at a time: the parts of a Sequential, or those that the trainer names as cuts,
    or the members of each ModuleList, where their parameters are used by them alone. The rest is one piece.
    """
    found = [part for _, part in parts_of(model, trainer.cuts(model))] or list(_members(model))
    uses = _uses(model)
    return [
        piece for piece in dict.fromkeys(found) if (own := _uses(piece)) and all(uses[one] == own[one] for one in own)
    ]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost ModuleLists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _members(child)


def _uses(module: nn.Module) -> Counter[int]:
    """How many of its modules have each parameter."""
    return Counter(id(one) for member in module.modules() for one in member.parameters(recurse=False))

"""Pipeline parallelism: each worker has some of the layers; a batch goes through them in microbatches.

The schedule is one forward, one backward (Narayanan et al., "PipeDream", 2019; torch.distributed.pipelining): as fast
as GPipe, with the activations of no more microbatches in memory than there are stages. Fewer microbatches than stages
go by GPipe's. Batch norms see microbatches, as in both papers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.utils import _pytree as pytree

from aimesh.training.v1 import training_pb2
from training.analyse.parts import parts_of
from training.parallel.cuts import check_parts, merged, numbers, put
from training.parallel.draws import draw_apart
from training.parallel.skeleton import fleshed, skeleton
from training.parallel.stages import microbatches, stage_ranges
from training.run.group import Group, Sum
from training.trainer import Entry

_Schedule = Schedule1F1B | ScheduleGPipe


@dataclass(frozen=True)
class _Cut:
    """Some samples of a batch."""

    first: int
    last: int

    def of(self, batch: Any) -> Any:
        return pytree.tree_map(lambda one: one[self.first : self.last] if isinstance(one, torch.Tensor) else one, batch)


class PipelineEngine:
    """One stage a worker. `plan` has the layers' costs; without them their parameters are taken."""

    data_parallel = False
    optimizer: torch.optim.Optimizer

    def __init__(self, plan: training_pb2.JobPlan | None = None) -> None:
        self._costs = {layer.name: layer.flops for layer in plan.model.layers} if plan is not None else {}

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """See Engine. Raises InvalidInputError (STRATEGY_REFUSED, TOO_MANY_STAGES, BAD_TRAINER)."""
        self.trainer, self.group = trainer, group
        parts = parts_of(model, trainer.cuts(model))
        check_parts(trainer, model, parts)
        costs = self._costs or {name: float(numbers(part)) for name, part in parts}
        trained = [sum(one.numel() for one in part.parameters() if one.requires_grad) for _, part in parts]
        ranges = stage_ranges([costs.get(name, 0.0) for name, _ in parts], trained, group.world_size)
        first, last = ranges[group.rank]
        self._shapes = {name: list(one.shape) for name, one in model.state_dict().items()}
        # The names of the whole model with this stage's numbers only.
        self._whole = skeleton(model)
        self._mine = nn.Sequential(*(part.to(group.device) for _, part in parts[first:last]))
        for name, part in parts[first:last]:
            put(self._whole, name, part)
        self._prefixes = tuple(f"{name}." for name, _ in parts[first:last])
        self._trained = [one for one in self._mine.parameters() if one.requires_grad]
        self.optimizer = trainer.optimizer(self._trained)
        self._schedules: dict[tuple[int, int], _Schedule] = {}
        self._batch: tuple[Any, int] = (None, 0)
        self._compute_s = 0.0
        self._same_groups()

    def backward(self, batch: Any, weight: float, said: Sequence[float]) -> Sum:
        """See Engine."""
        began = time.thread_time()
        self.optimizer.zero_grad(set_to_none=True)
        draw_apart(self.group.rank)
        size = len(next(one for one in pytree.tree_leaves(batch) if isinstance(one, torch.Tensor)))
        value, done = 0.0, 0
        for count, samples in microbatches(size, self.group.world_size):
            some = _Cut(done, done + count * samples).of(batch)
            self._batch = (some, size)
            value += self._run(count, samples, some)
            done += count * samples
        self._batch = (None, 0)
        self._compute_s = time.thread_time() - began
        return self.group.start_sum([value * weight, *said])

    def update(self) -> float:
        """See Engine."""
        own = nn.utils.get_total_norm([one.grad for one in self._trained if one.grad is not None])
        (squares,) = self.group.sum([float(own) ** 2])
        norm = math.sqrt(squares) if squares >= 0 else squares
        if self.trainer.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self.trainer.clip_norm, own.new_tensor(norm))
        self.optimizer.step()
        return norm

    def compute_s(self) -> float:
        """See Engine: the thread's own time, in which it does not wait. Unknown on a GPU."""
        return self._compute_s if self.group.device.type == "cpu" else 0.0

    def state(self) -> dict[str, Any]:
        """See Engine: this stage's tensors. "shapes" has those of the whole model, for who reads it."""
        kept: dict[str, Any] = get_optimizer_state_dict(self._whole, self.optimizer)
        every: list[Any] = [None] * self.group.world_size
        distributed.all_gather_object(every, kept["param_groups"])
        kept["param_groups"] = merged(every)
        return {"model": self._model_state(), "optimizer": kept, "shapes": self._shapes}

    def load(self, state: dict[str, Any]) -> None:
        """See Engine."""
        self._whole.load_state_dict(state["model"], strict=False)
        set_optimizer_state_dict(self._whole, self.optimizer, state["optimizer"])

    def full_model(self) -> nn.Module | None:
        """See Engine."""
        own = {name: one.contiguous() for name, one in self._model_state().items()}
        every: list[Any] = [None] * self.group.world_size
        distributed.all_gather_object(every, {name: (list(one.shape), one.dtype) for name, one in own.items()})
        if self.group.rank:
            for one in own.values():
                distributed.send(one, 0)
            return None
        for rank, named in enumerate(every[1:], start=1):
            for name, (shape, kind) in named.items():
                own[name] = torch.empty(shape, dtype=kind, device=self.group.device)
                distributed.recv(own[name], rank)
        return fleshed(self._whole, own)

    def _model_state(self) -> dict[str, Any]:
        return {name: one for name, one in self._whole.state_dict().items() if name.startswith(self._prefixes)}

    def _run(self, count: int, samples: int, batch: Any) -> float:
        """Microbatches of one size there and back. Returns their part of the mean loss, on the last stage."""
        schedule = self._schedules.get((count, samples))
        if schedule is None:
            schedule = self._schedules[count, samples] = self._new_schedule(count, batch)
        losses: list[torch.Tensor] = []
        try:
            self._call(schedule, batch, count * samples, losses)
        except RuntimeError as error:
            # What a layer raises is wrapped, and the line of the user's code lost with it.
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
        return sum(loss.item() for loss in losses)

    def _new_schedule(self, count: int, batch: Any) -> _Schedule:
        """One for microbatches of a size. Its first call goes through the layers to see the shapes, with numbers that
        are none: what layers count (a batch norm's means) is put back.
        """
        stage = PipelineStage(self._mine, self.group.rank, self.group.world_size, self.group.device)
        kind = Schedule1F1B if count >= self.group.world_size else ScheduleGPipe
        schedule = kind(stage, count, loss_fn=self._loss, scale_grads=False)
        buffers = list(self._mine.buffers())
        every = self.group.sum([float(len(buffers))])
        if every[0]:
            before = [one.clone() for one in buffers]
            gradients = [one.grad.clone() if one.grad is not None else None for one in self._trained]
            samples = len(next(one for one in pytree.tree_leaves(batch) if isinstance(one, torch.Tensor)))
            self._call(schedule, batch, samples, [])
            for one, gradient in zip(self._trained, gradients, strict=True):
                one.grad = gradient
            with torch.no_grad():
                for now, then in zip(buffers, before, strict=True):
                    now.copy_(then)
        return schedule

    def _call(self, schedule: _Schedule, batch: Any, samples: int, losses: list[torch.Tensor]) -> None:
        inputs = (self.trainer.inputs(batch),) if self.group.rank == 0 else ()
        # The targets are the places of samples, by which the loss finds its part of the batch.
        places = torch.arange(samples) if self.group.rank == self.group.world_size - 1 else None
        schedule.step(*inputs, target=places, losses=losses, return_outputs=False)

    def _loss(self, outputs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """A microbatch's part of the mean loss of the whole batch."""
        batch, size = self._batch
        some = _Cut(int(places[0]), int(places[-1]) + 1).of(batch)
        return self.trainer.output_loss(outputs, some) * (len(places) / size)

    def _same_groups(self) -> None:
        """Raises InvalidInputError when stages have other groups of parameters, which could not be told apart."""
        every: list[Any] = [None] * self.group.world_size
        distributed.all_gather_object(every, len(self.optimizer.param_groups))
        if len(set(every)) > 1:
            counts = ", ".join(map(str, every))
            raise self.trainer.wrong(
                "optimizer",
                f"makes another number of parameter groups of each stage: {counts}",
                "make the same groups whatever the parameters, maybe empty ones",
            )

"""Tensor parallelism: each worker has a part of some layers, and all of them the whole batch.

Pairs of linear layers are shared out, the first by columns and the second by rows (Shoeybi et al., "Megatron-LM", 2019,
section 3), or whatever the trainer's own tensor_plan says. Layers that are in no pair stay whole on each worker, which
all compute the same from the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from meshkit.errors import InvalidInputError
from training.analyse.parts import pairs_of
from training.entry import said
from training.parallel.draws import keep_apart
from training.parallel.shared import SharedModel
from training.plan.tensor import Pair, layout, usable
from training.run.group import Group, Sum
from training.trainer import Entry

_STYLES: Mapping[str, type[ParallelStyle]] = {"columns": ColwiseParallel, "rows": RowwiseParallel}


class TensorEngine(SharedModel):
    """parallelize_module over all workers."""

    data_parallel = False

    def prepare(self, trainer: Entry, model: nn.Module, group: Group) -> None:
        """See Engine. Raises InvalidInputError (STRATEGY_REFUSED) when no layer can be shared out."""
        self.keep(trainer, model, group)
        plan = plan_of(trainer, model, group.world_size)
        model.to(group.device)
        mesh = init_device_mesh(group.device.type, (group.world_size,))
        try:
            parallelize_module(model, mesh, plan)
        except (NotImplementedError, RuntimeError, ValueError, AttributeError) as error:
            raise _refused(f"the plan cannot be carried out: {said(error, None)}") from error
        for module in between(model, plan):
            keep_apart(module, group.rank)
        self._whole = [one for one in (*model.parameters(), *model.buffers()) if not isinstance(one, DTensor)]
        self._compute_s = 0.0
        self.own()

    def backward(self, batch: Any, weight: float, said: Sequence[float]) -> Sum:
        """See Engine."""
        began = time.thread_time()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.trainer.loss(self.model, batch)
        torch.autograd.backward(loss)
        value = loss.item()
        self._compute_s = time.thread_time() - began
        return self.group.start_sum([value * weight if self.group.rank == 0 else 0.0, *said])

    def compute_s(self) -> float:
        """See Engine: the thread's own time, in which it does not wait. Unknown on a GPU."""
        return self._compute_s if self.group.device.type == "cpu" else 0.0

    def state(self) -> dict[str, Any]:
        """See Engine. What each worker has computed for itself is set to what rank 0 has: rounding may differ between
        processors, and only one worker's is written.
        """
        with torch.no_grad():
            self.as_rank_0(self._whole)
        return super().state()


def plan_of(trainer: Entry, model: nn.Module, workers: int) -> dict[str, ParallelStyle]:
    """How each module is shared out, by name. Raises InvalidInputError (STRATEGY_REFUSED, BAD_TRAINER)."""
    own = trainer.tensor_plan(model)
    if own is not None:
        return _checked(own, model, trainer)
    found = pairs_of(model)
    if not usable(found, workers):
        raise _refused(_why_not(model, found, workers))
    return {name: _STYLES[how]() for name, how in layout(found, workers).items()}


def between(model: nn.Module, plan: Mapping[str, ParallelStyle]) -> list[nn.Module]:
    """The modules of Sequentials that see parts of features: after one by columns, before the next by rows.

    Nothing but a Sequential says in which order its members are called. One that is called elsewhere too is left out.
    """
    styles = {id(model.get_submodule(name)): style for name, style in plan.items()}
    found: dict[nn.Module, None] = {}
    calls = Counter(id(member) for module in model.modules() for member in module.children())
    for chain in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        within = False
        for member in _flat(chain):
            style = styles.get(id(member))
            if style is not None:
                within = isinstance(style, ColwiseParallel)
            elif within and calls[id(member)] == 1:
                found[member] = None
    return list(found)


def _flat(chain: nn.Sequential) -> Iterator[nn.Module]:
    for member in chain:
        if type(member) is nn.Sequential:
            yield from _flat(member)
        else:
            yield member


def _checked(own: Mapping[str, Any], model: nn.Module, trainer: Entry) -> dict[str, ParallelStyle]:
    known = dict(model.named_modules())
    for name, style in own.items():
        if name not in known:
            raise trainer.wrong("tensor_plan", f"names {name!r}, which is no module of the model", "mend the name")
        if not isinstance(style, ParallelStyle):
            what = f"gives {type(style).__name__} for {name!r}"
            raise trainer.wrong("tensor_plan", what, "give a torch.distributed.tensor.parallel style")
    if not own:
        raise trainer.wrong("tensor_plan", "gave an empty plan", "name the modules to be shared out, or leave it out")
    return dict(own)


def _why_not(model: nn.Module, found: Iterable[Pair], workers: int) -> str:
    widths = ", ".join(f"{pair.first.name} and {pair.second.name} ({pair.width})" for pair in found)
    if widths:
        return f"{workers} workers divide the width of none of its pairs of linear layers: {widths}"
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    return (
        f"no two of the model's {linear} linear layers follow each other in a Sequential with nothing but elementwise "
        "modules between"
    )


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"strategy tensor cannot be used: {why}",
        hint="take another number of workers or strategy, or give the trainer a tensor_plan",
        reason="STRATEGY_REFUSED",
    )

"""How fast this machine trains this model: a few real steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_REPEATS = 5


@dataclass(frozen=True)
class Pace:
    """Seconds of a step as a line: overhead_s + samples * sample_s."""

    overhead_s: float
    sample_s: float

    def flops_per_s(self, flops: float) -> float:
        """Operations a second, for a model with so many a sample forward and twice as many back; 0 when unknown."""
        return 3 * flops / self.sample_s if self.sample_s > 0 else 0.0


def line(small: tuple[int, float], large: tuple[int, float]) -> Pace:
    """The line through two measurements, (samples, seconds) each; neither term below 0."""
    (few, few_s), (many, many_s) = small, large
    if many <= few or many_s <= few_s:
        return Pace(0.0, many_s / many)
    sample_s = (many_s - few_s) / (many - few)
    overhead_s = max(0.0, few_s - sample_s * few)
    return Pace(overhead_s, (many_s - overhead_s) / many)


def pace(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Any], torch.Tensor],
    batch_of: Callable[[int], Any],
    most: int,
    budget_s: float,
) -> Pace:
    """Times whole steps with a quarter of a batch and with all of it: the shortest of a few, as others only slow it.

    `batch_of` gives batches by their size. The model's weights change. Stops measuring after the budget, at the least
    after one step of each size. Raises what the trainer's code raises.
    """
    sizes = sorted({max(1, most // 4), most})
    _step_s(model, optimizer, loss, batch_of(sizes[0]))  # the first allocates and chooses kernels
    ends = time.monotonic() + budget_s
    best: dict[int, float] = {}
    for _ in range(_REPEATS):
        for size in sizes:
            best[size] = min(best.get(size, float("inf")), _step_s(model, optimizer, loss, batch_of(size)))
        if time.monotonic() > ends:
            break
    return line((sizes[0], best[sizes[0]]), (sizes[-1], best[sizes[-1]]))


def _step_s(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Any], torch.Tensor], batch: Any
) -> float:
    began = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss(batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if torch.cuda.is_available() and next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began

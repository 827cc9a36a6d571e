"""The length of a gradient of which each worker has a part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def total_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """The length of all gradients together, the same on every worker: parts of DTensors are summed over the workers,
    plain tensors are taken to be the same on each.
    """
    plain, shared = _apart(one for one in parameters if one.grad is not None)
    found = nn.utils.get_total_norm([one.grad for one in plain if one.grad is not None])
    of_shared: Any = nn.utils.get_total_norm([one.grad for one in shared if one.grad is not None])
    if isinstance(of_shared, DTensor):
        of_shared = of_shared.full_tensor()
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([found.to(of_shared.device), of_shared]))
    return norm


def clip(parameters: Sequence[nn.Parameter], longest: float, norm: torch.Tensor) -> None:
    """Shortens the gradients in place when their length is beyond `longest`."""
    for some in _apart(parameters):
        if some:
            nn.utils.clip_grads_with_norm_(some, longest, norm)


def _apart(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Plain ones and DTensors: torch has no operation on a list of both."""
    plain: list[nn.Parameter] = []
    shared: list[nn.Parameter] = []
    for one in parameters:
        (shared if isinstance(one, DTensor) else plain).append(one)
    return plain, shared

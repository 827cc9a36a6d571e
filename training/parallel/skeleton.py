"""A model without its numbers: what an engine that shares it out keeps, to put it together again at the end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def skeleton(model: nn.Module) -> nn.Module:
    """A copy whose parameters are on the device "meta": shapes and ties, no memory. Buffers are copied as they are."""
    return _with_parameters_on(model, torch.device("meta"))


def fleshed(bones: nn.Module, tensors: Mapping[str, Any]) -> nn.Module:
    """A whole, plain model on the CPU from a skeleton and a state_dict. Tied weights stay tied."""
    model = _with_parameters_on(bones, torch.device("cpu"))
    model.load_state_dict(tensors)
    return model


def _with_parameters_on(model: nn.Module, device: torch.device) -> nn.Module:
    """A deep copy in which each parameter, shared or not, is replaced by an empty one."""
    memo: dict[int, Any] = {
        id(one): nn.Parameter(torch.empty_like(one, device=device), one.requires_grad) for one in model.parameters()
    }
    return copy.deepcopy(model, memo)

"""Whether a model is the parts that a pipeline would cut it into, called one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from meshkit.errors import InvalidInputError
from training.trainer import Entry


def merged(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The groups of parameters of all stages as one worker would have them. Pure."""
    return [
        {**those[0], "params": [name for one in those for name in one["params"]]} for those in zip(*groups, strict=True)
    ]


def check_parts(trainer: Entry, model: nn.Module, parts: Sequence[tuple[str, nn.Module]]) -> None:
    """Raises InvalidInputError (STRATEGY_REFUSED, BAD_TRAINER) when the parts one after the other are not the model."""
    if not trainer.has("output_loss"):
        raise _refused("the trainer has no output_loss", "add output_loss(outputs, batch) to the trainer")
    if not parts:
        hint = "write the model as a Sequential, or give the trainer cuts: the names of its parts, in order"
        raise _refused(f"{type(model).__name__} is no torch.nn.Sequential, and the trainer has no cuts", hint)
    seen: dict[int, str] = {}
    for name, part in parts:
        for parameter in part.parameters():
            if seen.setdefault(id(parameter), name) != name:
                why = f"{seen[id(parameter)]} and {name} share weights, which would lie on two workers"
                raise _refused(why, "take another strategy, or untie them")
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            raise trainer.wrong("cuts", f"leaves out the part with {name}", "name every part of the model, in order")
    if trainer.has("cuts"):
        _check_order(trainer, model, parts)


def _check_order(trainer: Entry, model: nn.Module, parts: Sequence[tuple[str, nn.Module]]) -> None:
    """Shows two samples to the model and to its parts one after the other. Raises InvalidInputError."""
    samples = trainer.samples()
    if samples is None:
        return
    inputs: Any = trainer.inputs(samples.batch(np.arange(min(2, len(samples)))))
    model.eval()
    with torch.no_grad():
        expected = model(inputs)
        for _, part in parts:
            inputs = part(inputs)
    model.train()
    if not torch.allclose(inputs, expected, rtol=1e-4, atol=1e-5):
        hint = "the model must be its parts called one after the other; name them in the order in which they are called"
        raise trainer.wrong("cuts", "names parts that one after the other do not give what the model gives", hint)


def numbers(part: nn.Module) -> int:
    """How many a part has."""
    return sum(one.numel() for one in part.parameters())


def put(model: nn.Module, name: str, part: nn.Module) -> None:
    """Replaces a module of a model by another."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)


def _refused(why: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"strategy pipeline cannot be used: {why}", hint=hint, reason="STRATEGY_REFUSED")

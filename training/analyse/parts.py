"""The structure of a module: where a pipeline may cut it, and which linear layers follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from meshkit.errors import InvalidInputError
from training.analyse.module import Parts
from training.plan.tensor import Pair, Step, pairs

_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Identity,
)  # fmt: skip


def parts_of(model: nn.Module, cuts: Sequence[str] | None = None) -> list[tuple[str, nn.Module]]:
    """The parts between which a pipeline may cut a model, by name, in the order in which they are called.

    They are those that the trainer names; else the members of a Sequential, a Sequential within it taken apart. Empty
    for any other module: nothing but its code says in which order its members are called. Raises InvalidInputError
    (BAD_TRAINER) for a name that no module has.
    """
    if cuts is not None:
        known = dict(model.named_modules())
        for name in cuts:
            if name not in known:
                raise InvalidInputError(
                    f"the trainer's cuts name {name!r}, which is no module of {type(model).__name__}",
                    hint=f"its members are {', '.join(name for name, _ in model.named_children()) or 'none'}",
                    reason="BAD_TRAINER",
                )
        return [(name, known[name]) for name in cuts]
    return list(_flat("", model)) if isinstance(model, nn.Sequential) else []


def pairs_of(model: nn.Module) -> list[Pair]:
    """Pairs of linear layers within the Sequentials of a model that tensor parallelism can share out."""
    chains = [
        [_step(name, member) for name, member in _flat(prefix, module)]
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Sequential) and not _within(model, prefix)
    ]
    return [pair for chain in chains for pair in pairs(chain)]


def planned_pairs(model: nn.Module, plan: Mapping[str, object]) -> list[Pair]:
    """The pairs of a trainer's own plan (module name to ParallelStyle): each by rows with the last by columns before.

    Further layers by columns, as of attention's queries and keys, count by their numbers alone: they are left out,
    which takes the plan for a little slower than it is.
    """
    found: list[Pair] = []
    before: Step | None = None
    for name, style in plan.items():
        step = _step(name, model.get_submodule(name))
        if step.kind != "linear":
            continue
        if type(style).__name__ == "RowwiseParallel" and before is not None:
            found.append(Pair(before, step))
            before = None
        elif type(style).__name__ == "ColwiseParallel":
            before = step
    return found


def units_of(parts: Parts, model: nn.Module) -> tuple[int, int]:
    """(number, bytes of the largest) of the pieces in which parameters are gathered: parts, or else all at once."""
    pieces = [_bytes(part) for _, part in parts]
    having = [count for count in pieces if count]
    return (len(having), max(having)) if having else (1, _bytes(model))


def unsharded(model: nn.Module) -> str:
    """Why FSDP cannot share a model out; empty when it can.

    There are no halves of a parameter without a dimension, and a piece's parameters become one buffer of one type.
    """
    scalars = [name for name, one in model.named_parameters() if not one.dim()]
    if scalars:
        return f"parameter {scalars[0]} has no dimension to be cut along: give it the shape [1]"
    first: dict[torch.dtype, str] = {}
    for name, one in model.named_parameters():
        first.setdefault(one.dtype, name)
    kinds = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in first.items())
    return f"parameters must be of one type: {kinds}" if len(first) > 1 else ""


def _flat(prefix: str, module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    for name, member in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if type(member) is nn.Sequential:
            yield from _flat(full, member)
        else:
            yield full, member


def _within(model: nn.Module, name: str) -> bool:
    """Whether a Sequential is a direct member of another, with which it was taken apart."""
    parent, _, last = name.rpartition(".")
    return bool(last) and isinstance(model.get_submodule(parent), nn.Sequential)


def _step(name: str, module: nn.Module) -> Step:
    if type(module) is nn.Linear:
        return Step(name, "linear", module.in_features, module.out_features, module.bias is not None)
    return Step(name, "elementwise" if isinstance(module, _ELEMENTWISE) else "other")


def _bytes(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in module.parameters())

"""What a model is, from the module itself: one pass forward on the device "meta", where nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aimesh.training.v1 import training_pb2
from training.analyse.classes import size_class
from training.analyse.file import family_word
from training.family import family_of

Parts = Sequence[tuple[str, nn.Module]]
"""The parts of a model between which a pipeline may be cut, by name."""


@dataclass
class _Seen:
    """What one pass forward left behind."""

    flops: float = 0
    kept: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    """Storages that wait for the way back, by address. Held, so that no address comes twice."""
    operations: set[str] = field(default_factory=set)
    part_flops: dict[str, float] = field(default_factory=dict)
    part_bytes: dict[str, int] = field(default_factory=dict)

    def saved_bytes(self, model: nn.Module) -> int:
        """Bytes of what is kept and is not the model's own."""
        own = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
        return sum(storage.nbytes() for address, storage in self.kept.items() if address not in own)


def profile_and_flops(
    model: nn.Module,
    forward: Callable[[], object],
    samples: int,
    parts: Parts = (),
    watched: Parts = (),
    *,
    source: str = "",
) -> tuple[training_pb2.ModelProfile, dict[str, float]]:
    """The profile of a model of which `forward()` makes one pass over so many samples, the loss included; and the
    operations a sample of every part and watched module, by name.

    Operations are those that torch counts (products, convolutions, attention; 2 for a multiplication with its
    addition), activations what autograd keeps beyond parameters and buffers; both are divided by the samples. On the
    device "meta" this takes no memory and no time to speak of. Raises what `forward` raises.
    """
    seen = _observe(forward, list(dict([*parts, *watched]).items()))
    profile = _profile(model, seen, samples, parts, source)
    return profile, {name: flops / samples for name, flops in seen.part_flops.items()}


def _profile(model: nn.Module, seen: _Seen, samples: int, parts: Parts, source: str) -> training_pb2.ModelProfile:
    parameters = list(model.parameters())
    count = sum(one.numel() for one in parameters)
    return training_pb2.ModelProfile(
        size_class=size_class(count),
        parameters=count,
        parameter_bytes=sum(one.numel() * one.element_size() for one in parameters),
        flops=seen.flops / samples or 2.0 * count,
        activation_bytes=seen.saved_bytes(model) // samples,
        family=family(model, seen.operations),
        layers=[
            training_pb2.Layer(
                name=name,
                parameters=sum(one.numel() for one in part.parameters()),
                flops=seen.part_flops.get(name, 0) / samples,
                output_bytes=seen.part_bytes.get(name, 0) // samples,
            )
            for name, part in parts
        ],
        source=source or "computed from the module, by one pass without numbers",
    )


def family(model: nn.Module, operations: Set[str] = frozenset()) -> str:
    """transformer, convolutional, recurrent, mlp or other: by the classes of its modules, operations and weights."""
    classes = {type(module).__name__.lower() for module in model.modules()}
    if any("attention" in name for name in classes):
        classes.add("attention")
    tensors = [(name, tuple(one.shape)) for name, one in model.named_parameters()]
    return family_word(family_of(classes | operations, tensors))


def _observe(forward: Callable[[], object], parts: Parts) -> _Seen:
    seen = _Seen()
    counter = FlopCounterMode(display=False)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen.kept[_address(tensor)] = storage
        return tensor

    handles = [handle for name, part in parts for handle in _watch(name, part, counter, seen)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    seen.flops = float(counter.get_total_flops())
    seen.operations = {str(operation).split(".")[-1].strip("_") for operation in counter.get_flop_counts()["Global"]}
    return seen


def _watch(name: str, part: nn.Module, counter: FlopCounterMode, seen: _Seen) -> list[Any]:
    """Has a part's operations and output counted while the pass goes through it."""
    before: list[float] = []

    def enter(_module: nn.Module, _inputs: object) -> None:
        before.append(float(counter.get_total_flops()))

    def leave(_module: nn.Module, _inputs: object, output: object) -> None:
        grown = float(counter.get_total_flops()) - before.pop()
        seen.part_flops[name] = seen.part_flops.get(name, 0) + grown
        seen.part_bytes[name] = _bytes(output)

    return [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]


def _bytes(output: object) -> int:
    if isinstance(output, torch.Tensor):
        return output.numel() * output.element_size()
    if isinstance(output, tuple | list):
        return sum(map(_bytes, output))
    if isinstance(output, dict):
        return sum(map(_bytes, output.values()))
    return 0


def _address(tensor: torch.Tensor) -> int:
    """What tells storages apart, on "meta" too, where no memory is behind them."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]

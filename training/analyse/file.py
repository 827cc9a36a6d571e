"""What a model is, from its file alone: nothing in it is run, and torch is not needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.analyse.analysis import Analysis
from training.analyse.classes import size_class
from training.findings import Tensor, bits_of, to_identification
from training.identify import look_into
from training.strategy.model import CPU_FLOPS, GPU_FLOPS, Basis

_FAMILIES = {
    "transformer": "transformer",
    "convolutional": "convolutional",
    "recurrent": "recurrent",
    "feed-forward": "mlp",
    "linear": "mlp",
}
_LEAST_BYTES = 2
"""Of a parameter that is trained: quantised ones are unpacked first."""
_FIRST = re.compile(r"emb|wte|wpe")
"""Words in the names of tensors that stand before the numbered blocks; what has no number stands behind them."""


def family_word(family: str) -> str:
    """The profile's word for a family as identification has it: transformer, convolutional, recurrent, mlp, other."""
    return _FAMILIES.get(family, "other")


def analyse_file(path: Path, samples: int, *, gpu: bool = False) -> Analysis:
    """What planning can know of a model by its file, to be trained on so many samples; every speed is assumed.

    Raises what profile_of_file raises.
    """
    profile = profile_of_file(path)
    each = profile.parameter_bytes / profile.parameters
    said = "a model's file does not say"
    refused: dict[int, str] = {training_pb2.STRATEGY_TENSOR: f"{said} which linear layers follow each other"}
    if not profile.layers:
        refused[training_pb2.STRATEGY_PIPELINE] = f"{said} in which order its parts are called: none has a number"
    return Analysis(
        profile=profile,
        samples=samples,
        refused=refused,
        units=len(profile.layers) or 1,
        unit_bytes=int(max((layer.parameters for layer in profile.layers), default=0) * each),
        basis=Basis(GPU_FLOPS if gpu else CPU_FLOPS),
    )


def profile_of_file(path: Path) -> training_pb2.ModelProfile:
    """The profile of a model's file or folder, as far as its content tells.

    A forward pass of one sample is estimated as two operations a parameter (Kaplan et al., "Scaling laws", 2020, table
    1), which is low for convolutions, where a weight is used at many places. Activations are not known. Raises
    InvalidInputError for a file that says of no parameters, and what identify raises.
    """
    findings = look_into(path)
    found = to_identification(findings)
    if not found.parameters:
        why = "; ".join(found.warnings) or "nothing in it has a shape"
        raise InvalidInputError(
            f"{path.name} does not say how many parameters it has ({found.format}: {why})",
            hint="name a torch.export program, a state dict, or a safetensors, GGUF or ONNX file, or a folder of them",
        )
    stored = sum(count * bits_of(data_type) / 8 for data_type, count in found.data_types.items())
    return training_pb2.ModelProfile(
        size_class=size_class(found.parameters),
        parameters=found.parameters,
        parameter_bytes=max(int(stored), _LEAST_BYTES * found.parameters),
        flops=2.0 * found.parameters,
        family=family_word(found.family),
        layers=layers_of(findings.tensors),
        source=f"read from {path.name} ({found.format}): activations are not known, operations taken as 2 a parameter",
    )


def layers_of(tensors: Iterable[Tensor]) -> list[training_pb2.Layer]:
    """The parts by which a model's tensors are numbered, in their order; empty when there are fewer than two.

    Such as "model.layers.7.mlp.up.weight", "blk.7.ffn_up.weight", and "7.weight" in a Sequential. Of several rows of
    numbers the one with most parameters counts. What has no number is one part: before the others by its name
    (embeddings), else behind them. What a part hands to the next is not known.
    """
    known = list(tensors)
    rows: dict[str, dict[int, int]] = {}
    for tensor in known:
        if (place := _numbered(tensor.name)) is not None:
            row = rows.setdefault(place[0], {})
            row[place[1]] = row.get(place[1], 0) + tensor.count
    main = max(rows, key=lambda prefix: sum(rows[prefix].values()), default="")
    if len(rows.get(main, ())) < 2:
        return []
    others = [tensor for tensor in known if (_numbered(tensor.name) or (None,))[0] != main]
    first = [tensor for tensor in others if _FIRST.search(tensor.name.lower())]
    last = [tensor for tensor in others if tensor not in first]
    blocks = [_layer(f"{main}{number}", count) for number, count in sorted(rows[main].items())]
    return [*_whole(first), *blocks, *_whole(last)]


def _numbered(name: str) -> tuple[str, int] | None:
    """What stands before the first number of a tensor's name, and that number."""
    found = re.match(r"(?P<prefix>(?:[^.]*[^.\d][^.]*\.)*)(?P<number>\d{1,6})\.", name)
    return (found["prefix"], int(found["number"])) if found else None


def _whole(tensors: Sequence[Tensor]) -> list[training_pb2.Layer]:
    """Tensors as one part, named after the first; none when they hold nothing."""
    count = sum(tensor.count for tensor in tensors)
    return [_layer(tensors[0].name.removesuffix(".weight"), count)] if count else []


def _layer(name: str, parameters: int) -> training_pb2.Layer:
    return training_pb2.Layer(name=name, parameters=parameters, flops=2.0 * parameters)

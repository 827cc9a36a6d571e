"""What a model is, from its file alone: nothing in it is run."""

from __future__ import annotations

from pathlib import Path

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from training.analyse.classes import size_class
from training.findings import bits_of
from training.identify import identify

_FAMILIES = {
    "transformer": "transformer",
    "convolutional": "convolutional",
    "recurrent": "recurrent",
    "feed-forward": "mlp",
    "linear": "mlp",
}


def family_word(family: str) -> str:
    """The profile's word for a family as identification has it: transformer, convolutional, recurrent, mlp, other."""
    return _FAMILIES.get(family, "other")


def profile_of_file(path: Path) -> training_pb2.ModelProfile:
    """The profile of a model's file or folder, as far as its content tells. Raises what identify raises."""
    return profile_of(identify(path), path.name)


def profile_of(found: registry_pb2.Identification, name: str = "its file") -> training_pb2.ModelProfile:
    """The profile of what was identified.

    A forward pass of one sample is estimated as two operations a parameter (Kaplan et al., "Scaling laws", 2020, table
    1), which is low for convolutions, where a weight is used at many places. Activations are not known.
    """
    stored = sum(count * bits_of(data_type) / 8 for data_type, count in found.data_types.items())
    return training_pb2.ModelProfile(
        size_class=size_class(found.parameters),
        parameters=found.parameters,
        parameter_bytes=int(stored),
        flops=2.0 * found.parameters,
        family=family_word(found.family),
        source=f"read from {name}: activations are not known, operations estimated as 2 a parameter",
    )

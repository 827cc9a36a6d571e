"""What analysing a job gave: everything that planning needs and that is not in the job's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aimesh.training.v1 import training_pb2
from training.plan.tensor import Pair
from training.strategy.model import BASE_BYTES, Basis


@dataclass(frozen=True)
class Analysis:
    """A job's model and data. What is not known has a default."""

    profile: training_pb2.ModelProfile
    samples: int
    """To learn from, those held back not counted."""
    holdout: int = 0
    pairs: tuple[Pair, ...] = ()
    """Linear layers that tensor parallelism can share out."""
    places: float = 1.0
    """How often a sample goes through each of those: once, or once a token."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Strategies that the trainer rules out, with the reason."""
    optimizer_slots: float = 2.0
    """Numbers that the optimizer keeps for each parameter."""
    unit_bytes: int = 0
    """Bytes of the largest piece of parameters that FSDP gathers at once; all when 0."""
    units: int = 1
    """How many such pieces there are."""
    base_bytes: int = BASE_BYTES
    """What a worker takes before it has the model."""
    basis: Basis = field(default_factory=Basis)
    """How fast the planning node and the network are."""

"""A desk with a small model, and updates for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aimesh.training.v1 import federated_pb2
from meshkit.errors import InvalidInputError
from training.federated.rounds import Desk
from training.federated.settings import Settings, checked
from training.federated.state import fresh
from training.federated.wire import Array, parts_of

MODEL: dict[str, Array] = {"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float64)}


def desk(folder: Path, model: Mapping[str, Array] = MODEL, **settings: Any) -> Desk:
    """A desk of job j at its first round."""
    made = checked(Settings(job="j", **settings))
    return Desk(made, fresh(model, list(model), made), list(model), folder, np.random.default_rng(made.seed))


def update(value: float | Mapping[str, Array], model: Mapping[str, Array] = MODEL) -> dict[str, Array]:
    """An update of one value everywhere."""
    if isinstance(value, Mapping):
        return dict(value)
    return {name: np.full_like(array, value) for name, array in model.items()}


def send(made: Desk, client: int, tensors: Mapping[str, Array], now_s: float = 0.0, **header: Any) -> int:
    """What a client does in a round: takes it, and sends this."""
    samples = header.pop("samples", 10)
    made.take(client, samples, now_s)
    said = {"job": "j", "client": client, "round": made.number, "samples": samples, "loss": 1.0, **header}
    incoming = made.begin(federated_pb2.UpdateHeader(**said))
    assert incoming is not None
    try:
        for part in parts_of(tensors):
            incoming.take(part)
        return made.add(incoming.finish())
    except InvalidInputError:
        incoming.drop()
        raise

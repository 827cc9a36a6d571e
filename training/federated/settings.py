"""What a federated job says, with its defaults, and what does not go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError

AGGREGATIONS: Mapping[str, training_pb2.Aggregation.ValueType] = {
    "fedavg": training_pb2.AGGREGATION_FEDAVG,
    "fedprox": training_pb2.AGGREGATION_FEDPROX,
    "scaffold": training_pb2.AGGREGATION_SCAFFOLD,
    "trimmed_mean": training_pb2.AGGREGATION_TRIMMED_MEAN,
}
"""By the names that people write."""


@dataclass(frozen=True)
class Settings:
    """How rounds go. The fields are those of aimesh.training.v1.Federated, durations in seconds."""

    job: str = ""
    aggregation: training_pb2.Aggregation.ValueType = training_pb2.AGGREGATION_FEDAVG
    clients: int = 1
    """Clients that are there: their numbers are below."""
    fraction: float = 1.0
    min_clients: int = 1
    deadline_s: float = 60.0
    local_epochs: int = 1
    proximal: float = 0.0
    trim: float = 0.1
    most_norm: float = 10.0
    clip: float = 0.0
    noise: float = 0.0
    delta: float = 1e-5
    server_learning_rate: float = 1.0
    seed: int = 0

    @property
    def scaffold(self) -> bool:
        """Whether control variates travel."""
        return self.aggregation == training_pb2.AGGREGATION_SCAFFOLD

    @property
    def private(self) -> bool:
        """Whether noise is added: then clients are drawn each by itself, and weigh the same."""
        return self.noise > 0


def settings_of(task: training_pb2.TrainingTask, clients: int) -> Settings:
    """The settings of a job of which so many clients are there. Raises InvalidInputError for what cannot be."""
    said, spec = task.spec.federated, task.spec
    aggregation = said.aggregation or training_pb2.AGGREGATION_FEDAVG
    prox = said.proximal or 0.01
    return checked(
        Settings(
            job=task.job,
            aggregation=aggregation,
            clients=clients,
            fraction=said.fraction or 1.0,
            min_clients=said.min_clients or 1,
            deadline_s=said.round_deadline.ToTimedelta().total_seconds() or 60.0,
            local_epochs=said.local_epochs or 1,
            proximal=prox if aggregation == training_pb2.AGGREGATION_FEDPROX else 0.0,
            trim=said.trim or 0.1,
            most_norm=said.most_norm or 10.0,
            clip=said.clip,
            noise=said.noise,
            delta=said.delta or 1e-5,
            server_learning_rate=said.server_learning_rate or 1.0,
            seed=spec.seed,
        )
    )


def checked(settings: Settings) -> Settings:
    """The settings themselves. Raises InvalidInputError that names the field."""
    _check(0 < settings.fraction <= 1, "fraction", settings.fraction, "above 0, at most 1")
    _check(settings.min_clients >= 1, "min_clients", settings.min_clients, "1 or more")
    if settings.min_clients > settings.clients:
        raise InvalidInputError(
            f"federated.min_clients {settings.min_clients} is more than the {settings.clients} clients that are there",
            hint="more nodes must come, or fewer clients make a round",
            reason="TOO_FEW_CLIENTS",
        )
    _check(0 <= settings.trim < 0.5, "trim", settings.trim, "0 or more, below 0.5")
    _check(0 < settings.delta < 1, "delta", settings.delta, "between 0 and 1")
    for name in ("most_norm", "server_learning_rate", "deadline_s"):
        _check(0 < getattr(settings, name) < math.inf, name, getattr(settings, name), "above 0")
    for name in ("clip", "noise", "proximal"):
        _check(0 <= getattr(settings, name) < math.inf, name, getattr(settings, name), "0 or more")
    if settings.private:
        _check(settings.clip > 0, "clip", settings.clip, "above 0 where there is noise, which is a multiple of it")
        means = (training_pb2.AGGREGATION_FEDAVG, training_pb2.AGGREGATION_FEDPROX)
        name = training_pb2.Aggregation.Name(settings.aggregation)
        _check(settings.aggregation in means, "aggregation", name, "FEDAVG or FEDPROX: epsilon is known of these only")
    return settings


def _check(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise InvalidInputError(f"federated.{name} = {value!r} cannot be", hint=expected, reason="BAD_FEDERATED")

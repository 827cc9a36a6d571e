"""A job's trainer, made in a worker's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.contract import Folder
from training.data.load import load
from training.entry import calling, find
from training.tasks import task_named
from training.trainer import Entry, Job


def build(spec: training_pb2.JobSpec, folder: Path) -> Entry:
    """The trainer of a job, with the job's data loaded: for workers, clients and the planner.

    Raises InvalidInputError: BAD_TRAINER for code that cannot be used, BAD_DATA for data, BAD_HYPERPARAMETER.
    """
    paths = Folder(folder)
    make: Callable[[Job], Any] = find(spec.code.entry, paths.code) if spec.HasField("code") else task_named(spec.task)
    job = Job(
        hyperparameters=hyperparameters(spec.hyperparameters),
        samples=load(spec.data, paths.data),
        base=paths.base if paths.base.is_dir() else None,
        seed=spec.seed,
        batch_size=spec.batch_size or 32,
        folder=folder,
    )
    name, code = (spec.code.entry, paths.code) if spec.HasField("code") else (spec.task, None)
    return Entry(construct(make, job, name, code), job, name, code)


def construct(make: Callable[[Job], Any], job: Job, name: str, code: Path | None = None) -> Any:
    """A trainer from its class, held against what every trainer has. Raises InvalidInputError."""
    with calling(f"trainer {name}: __init__", code):
        trainer = make(job)
    for method in ("model", "loss"):
        if not callable(getattr(trainer, method, None)):
            raise InvalidInputError(
                f"trainer {name}: {type(trainer).__name__} has no method {method}",
                hint="a trainer has __init__(job), model() and loss(model, batch)",
                reason="BAD_TRAINER",
            )
    return trainer


def hyperparameters(given: Mapping[str, str]) -> dict[str, Any]:
    """Values from their JSON; what is no JSON is text."""
    return {name: _value(text) for name, text in given.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text

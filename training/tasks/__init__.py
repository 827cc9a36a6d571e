"""Trainers that are built in, for data in common forms: classifier, regressor, autoencoder, language."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshkit.errors import InvalidInputError

if TYPE_CHECKING:
    from training.trainer import Job

TASKS = ("classifier", "regressor", "autoencoder", "language")
"""Their names, as JobSpec.task has them."""


def task_named(name: str) -> Callable[[Job], Any]:
    """The trainer class of a task. Raises InvalidInputError."""
    if name not in TASKS:
        raise InvalidInputError(
            f"there is no built-in task {name!r}", hint=f"known: {', '.join(TASKS)}", reason="BAD_TRAINER"
        )
    from training.tasks import arrays, language

    made: dict[str, Callable[[Job], Any]] = {
        "classifier": arrays.Classifier,
        "regressor": arrays.Regressor,
        "autoencoder": arrays.Autoencoder,
        "language": language.Language,
    }
    return made[name]

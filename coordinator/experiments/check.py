"""What an experiment or a comparison may ask for, with every default filled in. Pure."""

from __future__ import annotations

import math
import re

from aimesh.experiment.v1 import experiment_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.experiments.configuration import check_parameters
from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name, check_version

LEAST_QUESTIONS = 100
"""With fewer, a version that is right nine times of ten cannot be told from one that is right eight times."""
DEFAULT_METRICS = ("accuracy", "precision", "recall", "f1")
MOST_REPEAT = 20
MOST_REQUESTS = 1_000_000
_REPEAT = 3
_ENOUGH = 400
"""Requests from which a mean cost says something: see coordinator.rollout.compare."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def checked_spec(spec: experiment_pb2.ExperimentSpec) -> experiment_pb2.ExperimentSpec:
    """A copy with the defaults that need no dataset. Raises InvalidInputError naming the value."""
    if not _NAME.fullmatch(spec.name):
        raise InvalidInputError(
            f"experiment name {spec.name!r} is not allowed",
            hint="use 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
    check_model_name(spec.model)
    for version in (spec.candidate, spec.baseline):
        check_version(version)
    if spec.candidate == spec.baseline:
        raise InvalidInputError(
            f"candidate and baseline are both {spec.candidate}", hint="name two versions of the model"
        )
    check_parameters(spec.parameters)
    made = experiment_pb2.ExperimentSpec()
    made.CopyFrom(spec)
    made.evaluation.CopyFrom(with_metrics(spec.evaluation))
    made.gates.evaluation.CopyFrom(made.evaluation)
    if made.gates.none:
        raise InvalidInputError(
            "an experiment without gates decides nothing",
            hint="leave gates.none out, or use: aimesh experiments compare",
        )
    return made


def with_metrics(evaluation: rollout_pb2.Evaluation) -> rollout_pb2.Evaluation:
    """A copy with the metrics that are measured when none are named."""
    made = rollout_pb2.Evaluation()
    made.CopyFrom(evaluation)
    if not made.metrics:
        made.metrics.extend(DEFAULT_METRICS)
    return made


def check_questions(count: int, least: int = LEAST_QUESTIONS) -> None:
    """Raises InvalidInputError when there are too few to decide on."""
    if count < least:
        raise InvalidInputError(
            f"the dataset has {count} questions, and an experiment needs {least}",
            hint="add questions with known answers, one a line; fewer cannot tell versions apart",
            reason="BAD_DATASET",
        )


def repeats(asked: int, questions: int) -> int:
    """How often each question is put. Raises InvalidInputError when that is too often."""
    chosen = asked or max(_REPEAT, min(MOST_REPEAT, math.ceil(_ENOUGH / max(1, questions))))
    if chosen > MOST_REPEAT or chosen * questions > MOST_REQUESTS:
        raise InvalidInputError(
            f"{questions} questions {chosen} times are too many",
            hint=f"at most {MOST_REPEAT} times, and {MOST_REQUESTS} requests a version",
        )
    return chosen

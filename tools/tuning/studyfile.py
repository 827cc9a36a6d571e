"""A study in a TOML file: a job file with the table [tune]."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tools.training.jobfile import JobFile, parse_job
from tools.training.values import check_keys
from tools.tuning.space import BATCH_SIZE, Space, combinations, parse_spaces

Direction = Literal["minimize", "maximize"]
DIRECTIONS = ("minimize", "maximize")
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none")
TRIALS, PARALLEL = 20, 2
MOST_TRIALS, MOST_PARALLEL = 100_000, 256
KEYS = (
    "study",
    "metric",
    "direction",
    "sampler",
    "pruner",
    "prune_by",
    "trials",
    "parallel",
    "seed",
    "publish",
    "search",
)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""Shorter than a job's, which ends with the trial's number."""


@dataclass(frozen=True)
class Tune:
    """How a study searches."""

    study: str
    metric: str
    """Name of one of the results that a job measures at its end."""
    direction: Direction
    spaces: tuple[Space, ...]
    sampler: str = "tpe"
    pruner: str = "median"
    prune_by: str = "loss"
    """What is measured on the way."""
    trials: int = TRIALS
    parallel: int = PARALLEL
    seed: int = 0
    publish: bool = False
    """Whether the best is trained once more, with its result recorded."""

    @property
    def prune_sign(self) -> float:
        """What the values on the way are multiplied with, so that they go the metric's way: a loss is minimized."""
        return -1.0 if self.prune_by.endswith("loss") and self.direction == "maximize" else 1.0


@dataclass(frozen=True)
class StudyFile:
    """A study and the job of which each trial is a variant."""

    job: JobFile
    tune: Tune


def read_study(path: Path) -> StudyFile:
    """The study in a file. Raises InvalidInputError that names the key, its value and what it takes."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInputError(
            f"study file {path} cannot be read: {why}", hint="name a TOML file, as training/examples/tune.toml"
        ) from None
    table = found.pop("tune", None)
    if table is None:
        raise InvalidInputError(f"{path.name}: the table [tune] is missing", hint="see training/examples/tune.toml")
    job = parse_job(found, path)
    return StudyFile(job, _tune(table, job, f"{path.name}: tune"))


def facts(tune: Tune, spec: training_pb2.JobSpec) -> dict[str, str]:
    """What makes trials of a study comparable, by name: of a study that goes on, none of it may change."""
    search = {
        space.name: [space.kind, space.low, space.high, space.step, space.log, space.choices] for space in tune.spaces
    }
    points = {space.name: space.points for space in tune.spaces}
    return {
        "search": json.dumps(search, sort_keys=True),
        "metric": tune.metric,
        "direction": tune.direction,
        "prune_by": tune.prune_by,
        "sampler": tune.sampler,
        "grid": json.dumps([points, tune.seed], sort_keys=True) if tune.sampler == "grid" else "",
        "job": json_format.MessageToJson(spec, indent=None, sort_keys=True),
    }


def trial_spec(
    base: training_pb2.JobSpec, tune: Tune, labels: dict[str, Any], name: str, *, discard: bool
) -> training_pb2.JobSpec:
    """The job of one trial: the study's with the trial's hyperparameters."""
    made = training_pb2.JobSpec()
    made.CopyFrom(base)
    if not discard and not made.output.model:
        made.output.model = base.name
    made.name = name
    made.output.discard = discard
    for space in tune.spaces:
        value = space.value(labels[space.name])
        if space.name == BATCH_SIZE:
            made.batch_size = value
        else:
            made.hyperparameters[space.name] = json.dumps(value)
    return made


def _tune(table: object, job: JobFile, where: str) -> Tune:
    check_keys(table, KEYS, where)
    assert isinstance(table, dict)
    metric = _text(table.get("metric"), f"{where}.metric", 'a result of the job: "accuracy", "loss" or "train_loss"')
    most = MOST_TRIALS if table.get("sampler") == "grid" else TRIALS
    made = Tune(
        study=_name(table.get("study", job.spec.name), f"{where}.study"),
        metric=metric,
        direction=_word(table.get("direction"), f"{where}.direction", DIRECTIONS),
        spaces=parse_spaces(table.get("search"), f"{where}.search"),
        sampler=_word(table.get("sampler", "tpe"), f"{where}.sampler", SAMPLERS),
        pruner=_word(table.get("pruner", "median"), f"{where}.pruner", PRUNERS),
        prune_by=_text(table.get("prune_by", "loss"), f"{where}.prune_by", "a value measured on the way"),
        trials=whole(table.get("trials", most), f"{where}.trials", 1, MOST_TRIALS),
        parallel=whole(table.get("parallel", PARALLEL), f"{where}.parallel", 1, MOST_PARALLEL),
        seed=whole(table.get("seed", 0), f"{where}.seed", 0, 2**32 - 1),
        publish=_flag(table.get("publish", False), f"{where}.publish"),
    )
    if not metric.startswith("train_") and not job.spec.data.holdout:
        raise InvalidInputError(
            f"{where}.metric {metric!r} is measured on held-out samples, and the job holds none back",
            hint='set data.holdout = 0.2, for example, or metric = "train_loss"',
        )
    if made.sampler == "grid":
        combinations(made.spaces, made.seed, f"{where}.search")
    return made


def whole(value: object, where: str, least: int, most: int) -> int:
    """A whole number within bounds. Raises InvalidInputError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInputError(f"{where} = {value!r} is not possible", hint=f"a whole number, {least} to {most}")
    return value


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidInputError(f"{where} = {value!r} is no name of a study", hint="[a-z0-9][a-z0-9-]{0,31}")
    return value


def _word(value: object, where: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        missing = "is missing" if value is None else f"= {value!r} is not possible"
        raise InvalidInputError(f"{where} {missing}", hint=f"one of {', '.join(known)}")
    return value


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        missing = "is missing" if value is None else f"= {value!r} is not possible"
        raise InvalidInputError(f"{where} {missing}", hint=what)
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{where} = {value!r} is not possible", hint="true or false")
    return value

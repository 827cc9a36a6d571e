"""What `aimesh rollout start` is told, as the contract's RolloutSpec: pure, but for reading the gates' files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import duration_pb2

from aimesh.rollout.v1 import rollout_pb2
from meshkit.errors import InvalidInputError
from tools.cli.identity import parse_duration
from tools.cli.rollout_gates import inconclusive, read_gates, take_dataset

STRATEGIES = ("rolling", "blue-green", "canary", "shadow", "experiment")
DEFAULT_METRIC = "accuracy"


@dataclass(frozen=True)
class Asked:
    """The options of `aimesh rollout start` and `plan`. Empty text and None stand for the mesh's own default."""

    name: str
    version: str = ""
    strategy: str = "canary"
    steps: str = ""
    hold: str = ""
    keep: str = ""
    percent: float = 0.0
    duration: str = ""
    arms: Sequence[str] = ()
    header: str = ""
    gates: Path | None = None
    no_gates: bool = False
    inconclusive: str = ""
    evaluate: Path | None = None
    """The evaluation set."""
    output: str = ""
    """Of its answers, the one that is compared."""
    metrics: Sequence[str] = ()
    replicas: int = 0
    max_surge: int | None = None
    max_unavailable: int | None = None
    step_timeout: str = ""
    watch: str = ""
    allow_downgrade: bool = False


def spec_of(asked: Asked) -> rollout_pb2.RolloutSpec:
    """The rollout that is asked for. Raises InvalidInputError for what is no value of an option."""
    return read(asked)[0]


def read(asked: Asked) -> tuple[rollout_pb2.RolloutSpec, Path | None]:
    """The same, and the evaluation set that it names by digest, when that is a file here: it must be uploaded."""
    spec = rollout_pb2.RolloutSpec(
        name=asked.name, version=asked.version, replicas=asked.replicas, allow_downgrade=asked.allow_downgrade
    )
    _set_strategy(spec, asked)
    dataset = _set_gates(spec, asked)
    if asked.max_surge is not None:
        spec.max_surge = asked.max_surge
    if asked.max_unavailable is not None:
        spec.max_unavailable = asked.max_unavailable
    _set(spec.step_timeout, asked.step_timeout)
    _set(spec.watch, asked.watch)
    return spec, dataset


def _set_strategy(spec: rollout_pb2.RolloutSpec, asked: Asked) -> None:
    if asked.strategy == "canary":
        spec.canary.SetInParent()
        spec.canary.steps.extend(_percents(asked.steps))
        _set(spec.canary.hold, asked.hold)
    elif asked.strategy == "rolling":
        spec.rolling.SetInParent()
    elif asked.strategy == "blue-green":
        spec.blue_green.SetInParent()
        _set(spec.blue_green.keep, asked.keep)
    elif asked.strategy == "shadow":
        spec.shadow.percent = asked.percent
        _set(spec.shadow.duration, asked.duration)
    elif asked.strategy == "experiment":
        spec.experiment.header = asked.header
        spec.experiment.arms.extend(_arm(text) for text in asked.arms)
        _set(spec.experiment.duration, asked.duration)
    else:
        raise InvalidInputError(f"strategy {asked.strategy!r} is unknown", hint=f"one of {', '.join(STRATEGIES)}")


def _set_gates(spec: rollout_pb2.RolloutSpec, asked: Asked) -> Path | None:
    if asked.no_gates and (asked.gates is not None or asked.evaluate is not None):
        other = "--gates" if asked.gates is not None else "--eval"
        raise InvalidInputError(f"{other} and --no-gates exclude each other", hint="leave one out")
    if asked.gates is not None:
        spec.gates.CopyFrom(read_gates(asked.gates))
    spec.gates.none = spec.gates.none or asked.no_gates
    if asked.inconclusive:
        spec.gates.inconclusive = inconclusive(asked.inconclusive)
    folder = asked.gates.parent if asked.gates is not None else Path()
    if asked.evaluate is not None:
        spec.gates.evaluation.dataset, folder = str(asked.evaluate), Path()
    _set_evaluation(spec.gates, asked)
    return take_dataset(spec.gates, folder)


def _set_evaluation(gates: rollout_pb2.Gates, asked: Asked) -> None:
    """What is asked of the evaluation set; the options win over the gates' file."""
    if not gates.HasField("evaluation"):
        if asked.output or asked.metrics:
            raise InvalidInputError("--eval-output and --eval-metric are of an evaluation set", hint="add --eval FILE")
        return
    gates.evaluation.output = asked.output or gates.evaluation.output
    if asked.metrics:
        gates.evaluation.metrics[:] = asked.metrics
    if not gates.evaluation.metrics:
        gates.evaluation.metrics.append(DEFAULT_METRIC)
    if not gates.evaluation.output:
        raise InvalidInputError(
            "it is not said which output is compared with what is expected",
            hint="--eval-output NAME; the names: aimesh models show",
            reason="BAD_GATES",
        )


def _percents(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() and len(part) <= 4 for part in parts):
        raise InvalidInputError(f"--steps {text!r} is no list of percents", hint="for example --steps 5,25,50,100")
    return [int(part) for part in parts]


def _arm(text: str) -> rollout_pb2.Arm:
    version, equals, percent = text.partition("=")
    if not equals or not percent.isdigit() or len(percent) > 4:
        raise InvalidInputError(f"{text!r} is no arm", hint="for example --arm 1.0.0=50 --arm 1.1.0=50")
    return rollout_pb2.Arm(version=version, percent=int(percent))


def _set(field: duration_pb2.Duration, text: str) -> None:
    if text:
        field.FromTimedelta(parse_duration(text))

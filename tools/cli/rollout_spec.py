"""What `aimesh rollout start` is told, as the contract's RolloutSpec: pure, but for reading the gates' file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import duration_pb2, json_format

from aimesh.rollout.v1 import rollout_pb2
from meshkit.errors import InvalidInputError
from tools.cli.identity import parse_duration

STRATEGIES = ("rolling", "blue-green", "canary", "shadow", "experiment")
INCONCLUSIVE: Mapping[str, rollout_pb2.Inconclusive.ValueType] = {
    "hold": rollout_pb2.INCONCLUSIVE_HOLD,
    "promote": rollout_pb2.INCONCLUSIVE_PROMOTE,
    "rollback": rollout_pb2.INCONCLUSIVE_ROLL_BACK,
}


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
    replicas: int = 0
    max_surge: int | None = None
    max_unavailable: int | None = None
    step_timeout: str = ""
    watch: str = ""
    allow_downgrade: bool = False


def spec_of(asked: Asked) -> rollout_pb2.RolloutSpec:
    """The rollout that is asked for. Raises InvalidInputError for what is no value of an option."""
    spec = rollout_pb2.RolloutSpec(
        name=asked.name, version=asked.version, replicas=asked.replicas, allow_downgrade=asked.allow_downgrade
    )
    _set_strategy(spec, asked)
    _set_gates(spec, asked)
    if asked.max_surge is not None:
        spec.max_surge = asked.max_surge
    if asked.max_unavailable is not None:
        spec.max_unavailable = asked.max_unavailable
    _set(spec.step_timeout, asked.step_timeout)
    _set(spec.watch, asked.watch)
    return spec


def read_gates(path: Path) -> rollout_pb2.Gates:
    """Gates in TOML with the contract's field names, or a policy in Rego. Raises InvalidInputError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from None
    if path.suffix.lower() == ".rego":
        return rollout_pb2.Gates(rego=text)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{path}: {error}", hint="TOML, or a policy in a file that ends in .rego") from None
    if "inconclusive" in found:
        found["inconclusive"] = _inconclusive(str(found["inconclusive"]))
    try:
        return json_format.ParseDict(found, rollout_pb2.Gates())
    except json_format.ParseError as error:
        raise InvalidInputError(f"{path}: {error}", hint="its keys are in docs/operations/rollouts.md") from None


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


def _set_gates(spec: rollout_pb2.RolloutSpec, asked: Asked) -> None:
    if asked.gates is not None and asked.no_gates:
        raise InvalidInputError("--gates and --no-gates exclude each other", hint="leave one out")
    if asked.gates is not None:
        spec.gates.CopyFrom(read_gates(asked.gates))
    spec.gates.none = spec.gates.none or asked.no_gates
    if asked.inconclusive:
        spec.gates.inconclusive = _inconclusive(asked.inconclusive)


def _inconclusive(text: str) -> rollout_pb2.Inconclusive.ValueType:
    if text not in INCONCLUSIVE:
        raise InvalidInputError(f"inconclusive {text!r} is unknown", hint=f"one of {', '.join(INCONCLUSIVE)}")
    return INCONCLUSIVE[text]


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

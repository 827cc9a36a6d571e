"""What a rollout is judged on, as the contract's Gates, from files: gates, a policy, an evaluation set."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import json_format

from aimesh.rollout.v1 import rollout_pb2
from coordinator.evaluation.dataset import parse
from meshkit.errors import InvalidInputError

INCONCLUSIVE: Mapping[str, rollout_pb2.Inconclusive.ValueType] = {
    "hold": rollout_pb2.INCONCLUSIVE_HOLD,
    "promote": rollout_pb2.INCONCLUSIVE_PROMOTE,
    "rollback": rollout_pb2.INCONCLUSIVE_ROLL_BACK,
}
_DIGEST = re.compile(r"[0-9a-f]{64}")


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
        found["inconclusive"] = inconclusive(str(found["inconclusive"]))
    try:
        return json_format.ParseDict(found, rollout_pb2.Gates())
    except json_format.ParseError as error:
        raise InvalidInputError(f"{path}: {error}", hint="its keys are in docs/operations/gates.md") from None


def inconclusive(text: str) -> rollout_pb2.Inconclusive.ValueType:
    """hold, promote or rollback. Raises InvalidInputError."""
    if text not in INCONCLUSIVE:
        raise InvalidInputError(f"inconclusive {text!r} is unknown", hint=f"one of {', '.join(INCONCLUSIVE)}")
    return INCONCLUSIVE[text]


def take_dataset(gates: rollout_pb2.Gates, folder: Path) -> Path | None:
    """Puts the digest in place of the evaluation set's path, which is relative to a folder; the file to upload.

    None when there is no evaluation, or its set is named by its digest already. Raises InvalidInputError when the file
    cannot be read, or naming its first line that is no question with a label.
    """
    named = gates.evaluation.dataset
    if not named or _DIGEST.fullmatch(named):
        return None
    path = folder / named
    try:
        content = path.read_bytes()
        parse(content)
    except OSError as error:
        raise InvalidInputError(f"evaluation set {path} cannot be read: {error.strerror}") from None
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error.message}", hint=error.hint, reason=error.reason) from None
    gates.evaluation.dataset = hashlib.sha256(content).hexdigest()
    return path

"""What makes a configuration what it is, and the request parameters in it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from tritonclient.grpc import service_pb2

from aimesh.experiment.v1 import experiment_pb2
from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError, PreconditionError
from meshkit.versions import version_digest

MOST_PARAMETERS = 64
MOST_TEXT = 4096
"""Characters of a parameter's value."""
_INT64 = range(-(2**63), 2**63)


def content_of(version: registry_pb2.ModelVersion) -> str:
    """What a version is made of, whatever number it has: pushing the same files once more does not make them better."""
    essence = registry_pb2.ModelVersion()
    essence.CopyFrom(version)
    for said in ("version", "replaces"):
        essence.ClearField(said)
    return version_digest(essence)


def hash_of(version: registry_pb2.ModelVersion, parameters: Mapping[str, str]) -> str:
    """sha256 of a configuration: the model, what the version is made of, the parameters; 64 hex digits."""
    parts = {"model": version.name, "content": content_of(version), "parameters": dict(parameters)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_parameters(parameters: Mapping[str, str]) -> None:
    """Raises InvalidInputError for those that cannot be sent."""
    if len(parameters) > MOST_PARAMETERS:
        raise InvalidInputError(f"{len(parameters)} parameters", hint=f"at most {MOST_PARAMETERS}")
    for name, value in parameters.items():
        if not name or len(name) > MOST_TEXT or len(value) > MOST_TEXT:
            raise InvalidInputError(
                f"parameter {name[:60]!r} is not possible", hint=f"1 to {MOST_TEXT} characters of name and value"
            )
        infer_parameter(value)


def infer_parameter(value: str) -> service_pb2.InferParameter:
    """As a request carries it: JSON's numbers and truth values as such, everything else as text."""
    try:
        found = json.loads(value)
    except ValueError:
        found = value
    if isinstance(found, bool):
        return service_pb2.InferParameter(bool_param=found)
    if isinstance(found, int) and found in _INT64:
        return service_pb2.InferParameter(int64_param=found)
    if isinstance(found, float):
        return service_pb2.InferParameter(double_param=found)
    return service_pb2.InferParameter(string_param=value)


def check_not_quarantined(
    quarantined: Iterable[experiment_pb2.Quarantine], version: registry_pb2.ModelVersion, config_hash: str = ""
) -> None:
    """Raises PreconditionError (QUARANTINED) for a configuration that is; without a hash, for any of the version."""
    content = ""
    for each in quarantined:
        if each.HasField("review") or each.model != version.name:
            continue
        content = content or content_of(version)
        if each.hash == config_hash or (not config_hash and each.content == content):
            raise PreconditionError(
                f"{version.name}:{version.version} is quarantined since {each.at.ToJsonString()[:16]}Z by experiment "
                f"{each.experiment!r} ({each.by}): {each.reason}",
                hint=f"evidence: aimesh experiments show {each.experiment}; to try it all the same: "
                f"aimesh experiments review {each.hash[:12]} --release --reason ...",
                reason="QUARANTINED",
            )

"""Checks of what users send, before anything is read or written. Each raises InvalidInputError naming the value."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.policy.check import check_policy
from coordinator.registry.checking import check_prompt, check_said
from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name, check_version

RUNTIMES = ("llama", "onnx", "torch", "embed", "python")
MOST_REPLICAS = 10_000
MOST_TARGETS = 16
MOST_WEIGHT = 1_000_000

MOST_PATH = 1024
"""Bytes of a file's path."""
MOST_FILE_NAME = 255
"""Bytes of one part of it: more than that no file system takes (NAME_MAX)."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_version_message(version: registry_pb2.ModelVersion) -> registry_pb2.ModelVersion:
    """A copy of the version with its files sorted, without what only the coordinator sets."""
    check_model_name(version.name)
    check_version(version.version)
    is_prompt = version.kind == registry_pb2.KIND_PROMPT
    if not is_prompt and version.runtime not in RUNTIMES:
        raise InvalidInputError(f"runtime {version.runtime!r} is unknown", hint=f"one of {', '.join(RUNTIMES)}")
    if not version.files:
        raise InvalidInputError(f"{version.name}:{version.version} has no files")
    for file in version.files:
        _check_file(file)
    paths = [file.path for file in version.files]
    if len(set(paths)) < len(paths):
        raise InvalidInputError(f"{version.name}:{version.version} names a file twice")
    if both := sorted({str(parent) for path in paths for parent in PurePosixPath(path).parents} & set(paths)):
        raise InvalidInputError(f"{version.name}:{version.version}: {both[0]!r} is a file and a directory")
    check_said(version)
    if is_prompt:
        check_prompt(version)
    checked = registry_pb2.ModelVersion()
    checked.CopyFrom(version)
    checked.files.sort(key=lambda file: file.path)
    checked.kind = version.kind or registry_pb2.KIND_MODEL
    checked.ClearField("digest")
    checked.ClearField("created_at")
    return checked


def check_deployment(deployment: routing_pb2.Deployment) -> None:
    """Checks all that can be checked without knowing the registry."""
    check_model_name(deployment.name)
    if not deployment.targets:
        raise InvalidInputError(f"deployment {deployment.name!r} has no targets", hint="name at least one version")
    versions = [target.version for target in deployment.targets]
    for target in deployment.targets:
        check_version(target.version)
        if not 1 <= target.replicas <= MOST_REPLICAS:
            raise InvalidInputError(
                f"{target.replicas} replicas are not possible", hint=f"ask for 1 to {MOST_REPLICAS}"
            )
        if target.weight > MOST_WEIGHT:
            raise InvalidInputError(f"weight {target.weight} is too large", hint=f"use 0 to {MOST_WEIGHT}")
    if len(versions) > MOST_TARGETS:
        raise InvalidInputError(f"{len(versions)} versions at once", hint=f"at most {MOST_TARGETS}")
    if len(set(versions)) < len(versions):
        raise InvalidInputError(f"deployment {deployment.name!r} names a version twice")
    if not any(target.weight for target in deployment.targets):
        raise InvalidInputError(
            f"the weights of deployment {deployment.name!r} sum to zero", hint="give at least one target a weight"
        )
    check_policy(deployment)


def _check_file(file: registry_pb2.ModelFile) -> None:
    path = PurePosixPath(file.path)
    if (
        not file.path
        or path.is_absolute()
        or str(path) != file.path
        or {".", ".."} & set(path.parts)
        or not file.path.isprintable()
        or len(file.path.encode()) > MOST_PATH
        or any(len(part.encode()) > MOST_FILE_NAME for part in path.parts)
    ):
        raise InvalidInputError(
            f"file path {file.path[:300]!r} is not allowed",
            hint=f"use a relative path with '/', without '.' or '..' parts, of at most {MOST_PATH} bytes",
        )
    if not _DIGEST.fullmatch(file.digest):
        raise InvalidInputError(f"file {file.path}: digest {file.digest!r} is no sha256 in lower-case hex")

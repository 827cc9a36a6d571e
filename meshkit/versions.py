"""What makes a model version what it is: its digest, the same wherever it is computed."""

from __future__ import annotations

import hashlib
from typing import Final

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import DataLossError

NOT_IN_DIGEST: Final = (
    "requirements",
    "digest",
    "created_at",
    "provenance",
    "changelog",
    "signatures",
    "identification",
)


def version_digest(version: registry_pb2.ModelVersion) -> str:
    """sha256 over what makes the version what it is, and not over what is said or measured of it; 64 hex digits.

    The order of its files does not matter, nor whether it says of itself that it is a model.
    """
    essence = registry_pb2.ModelVersion()
    essence.CopyFrom(version)
    for field in NOT_IN_DIGEST:
        essence.ClearField(field)
    if essence.kind == registry_pb2.KIND_MODEL:
        essence.ClearField("kind")  # what is unset means the same
    essence.files.sort(key=lambda file: file.path)
    for file in essence.files:
        file.ClearField("chunks")  # follows from its digest
    return hashlib.sha256(essence.SerializeToString(deterministic=True)).hexdigest()


def check_digest(version: registry_pb2.ModelVersion) -> None:
    """Raises DataLossError when a version is not what its recorded digest says. One without a digest claims nothing."""
    if version.digest and (found := version_digest(version)) != version.digest:
        raise DataLossError(
            f"{version.name}:{version.version} has digest {found[:16]}…, and was recorded with {version.digest[:16]}…",
            hint="somebody changed the registry's entry behind its back: remove the version and push it again",
            reason="VERSION_CHANGED",
        )

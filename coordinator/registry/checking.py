"""Limits of what a push says of a version, and what a prompt may be. Each raises InvalidInputError naming the value."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf import duration_pb2

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError
from meshkit.names import check_version

MOST_CHANGELOG = 16 * 1024
"""Bytes: the text lies in etcd, and every coordinator holds all of it in memory."""
MOST_PROMPT = 256 * 1024
"""Bytes of a prompt's text: it travels in one message."""
MOST_RECORD = 400 * 1024
"""Bytes of all that is recorded of a version, as JSON: etcd takes 1.5 MiB a write, which holds the audit event too."""
MOST_BATCH = 2**31 - 1
"""What Triton's configuration holds."""
MOST_SOURCE = 1024
MOST_DETAILS = 32
MOST_DETAIL_KEY = 63
MOST_MIGRATION_S = 3600

_ANY = -1
_KINDS = (registry_pb2.KIND_MODEL, registry_pb2.KIND_PROMPT)
_LEAST_VERSION = re.compile(r"(\d+(\.\d+){0,5})?")


def check_said(version: registry_pb2.ModelVersion) -> None:
    """What is said of a version: provenance, changelog, what it replaces and needs."""
    if version.kind not in (registry_pb2.KIND_UNSPECIFIED, *_KINDS):
        raise InvalidInputError(f"kind {version.kind} is unknown", hint="KIND_MODEL or KIND_PROMPT")
    _check_signature(version.signature)
    _check_length("the changelog", version.changelog, MOST_CHANGELOG)
    _check_provenance(version.provenance)
    if version.replaces:
        check_version(version.replaces)
    for field in ("triton_version", "runtime_version"):
        least = getattr(version.requirements, field)
        if not _LEAST_VERSION.fullmatch(least):
            raise InvalidInputError(
                f"requirements.{field} {least[:80]!r} is no version", hint="numbers, such as 2.51.0"
            )
    if version.HasField("migration"):
        _check_migration(version)


def check_record(version: registry_pb2.ModelVersion, record: bytes) -> None:
    """Whether etcd takes a version with all that is said of it."""
    if len(record) > MOST_RECORD:
        raise InvalidInputError(
            f"{version.name}:{version.version} with its {len(version.files)} files and what is said of them has "
            f"{len(record)} bytes as JSON",
            hint=f"at most {MOST_RECORD}: push many small files as one archive, or say less of them",
        )


def check_prompt(version: registry_pb2.ModelVersion) -> None:
    """A prompt is one text, which no runtime serves."""
    named = f"prompt {version.name}:{version.version}"
    if len(version.files) != 1:
        raise InvalidInputError(f"{named} has {len(version.files)} files", hint="a prompt is exactly one")
    if version.files[0].size > MOST_PROMPT:
        raise InvalidInputError(
            f"{named} has {version.files[0].size} bytes", hint=f"at most {MOST_PROMPT}: a prompt is one text"
        )
    for field in ("runtime", "self_test", "parameters", "signature", "requirements", "migration"):
        if getattr(version, field) != getattr(registry_pb2.ModelVersion(), field):
            raise InvalidInputError(f"{named} has {field}", hint="nothing runs a prompt: leave it out")


def _check_signature(signature: registry_pb2.Signature) -> None:
    """Tensors that can be: of a known type, each name once; and a batch that Triton can be told of."""
    if signature.max_batch_size > MOST_BATCH:
        raise InvalidInputError(
            f"signature.max_batch_size {signature.max_batch_size} is too large", hint=f"at most {MOST_BATCH}"
        )
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        _check_tensors(kind, specs)


def _check_tensors(kind: str, specs: Iterable[registry_pb2.TensorSpec]) -> None:
    known, seen = registry_pb2.DataType.DESCRIPTOR.values_by_number, set[str]()
    for spec in specs:
        named = f"signature: {kind} {spec.name[:80]!r}"
        if not spec.name or spec.name in seen:
            raise InvalidInputError(f"{named} {'is there twice' if spec.name else 'has no name'}")
        seen.add(spec.name)
        if not spec.data_type or spec.data_type not in known:
            raise InvalidInputError(f"{named} has the unknown data_type {spec.data_type}", hint="DATA_TYPE_FP32 ...")
        if any(size < _ANY for size in spec.shape):
            raise InvalidInputError(f"{named} has the shape {list(spec.shape)[:8]}", hint="-1 stands for any size")


def _check_provenance(provenance: registry_pb2.Provenance) -> None:
    _check_length("provenance.source", provenance.source, MOST_SOURCE)
    if len(provenance.details) > MOST_DETAILS:
        raise InvalidInputError(f"provenance has {len(provenance.details)} details", hint=f"at most {MOST_DETAILS}")
    for key, value in provenance.details.items():
        if not 1 <= len(key) <= MOST_DETAIL_KEY:
            raise InvalidInputError(
                f"provenance.details has a key of {len(key)} characters", hint=f"1 to {MOST_DETAIL_KEY}"
            )
        _check_length(f"provenance.details[{key!r}]", value, MOST_SOURCE)


def _check_migration(version: registry_pb2.ModelVersion) -> None:
    path, timeout = version.migration.path, version.migration.timeout
    if path not in {file.path for file in version.files}:
        raise InvalidInputError(
            f"migration.path {path!r} is none of the files of {version.name}:{version.version}",
            hint="name an executable that is pushed with the version",
        )
    if version.migration.HasField("timeout") and not _possible(timeout):
        raise InvalidInputError(
            f"migration.timeout of {timeout.seconds} s is not possible",
            hint=f"more than 0, at most {MOST_MIGRATION_S} s",
        )


def _possible(timeout: duration_pb2.Duration) -> bool:
    return 0 < timeout.seconds + timeout.nanos / 1e9 <= MOST_MIGRATION_S


def _check_length(what: str, text: str, most: int) -> None:
    if (size := len(text.encode())) > most:
        raise InvalidInputError(f"{what} has {size} bytes", hint=f"at most {most}; keep the rest elsewhere and name it")

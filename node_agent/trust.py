"""Which versions this node may load: those that are what they were recorded as, and signed when the mesh asks for it.

Whose signatures count comes with every Assignments and is kept on disk, so that a Triton that starts while no
coordinator can be reached is not given what was forbidden before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import structlog
from google.protobuf import json_format

from aimesh.registry.v1 import registry_pb2
from meshkit.files import write_atomically
from meshkit.signing import check_allowed, verify_digest
from meshkit.versions import check_digest, version_digest

log = structlog.get_logger()

UNSIGNED = "UNSIGNED"
"""Reason of the error that refuses a version for want of a signature (meshkit.signing)."""


class TrustRecord:
    """Whose signatures count: <data_dir>/trust.json. `set` blocks on the disk, and only when something changed."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "trust.json"
        self._trust = _read(self._path)

    def set(self, trust: registry_pb2.Trust) -> bool:
        """From now on; whether it is another than before. A full disk is logged: this life of the agent knows it."""
        if trust == self._trust:
            return False
        self._trust = registry_pb2.Trust()
        self._trust.CopyFrom(trust)
        text = json_format.MessageToJson(trust, preserving_proto_field_name=True, indent=None)
        try:
            write_atomically(self._path, text.encode())
        except OSError as error:
            log.warning("trust.not_recorded", reason=str(error))
        log.info("trust.changed", signed_only=trust.signed_only, keys=[key.name for key in trust.keys])
        return True

    def check(self, version: registry_pb2.ModelVersion) -> None:
        """Raises DataLossError when the version is not what its digest says, PreconditionError when it is not signed
        and must be."""
        check_digest(version)
        check_allowed(version, self._trust)

    def signed(self, version: registry_pb2.ModelVersion) -> bool:
        """Whether it is as signed as the mesh asks for."""
        return self.allows(version_digest(version), version.signatures)

    def allows(self, digest: str, signatures: Iterable[registry_pb2.VersionSignature]) -> bool:
        """Whether a version with this digest, which was checked when it was loaded, may be loaded again."""
        return not self._trust.signed_only or bool(verify_digest(digest, signatures, self._trust).signer)


def _read(path: Path) -> registry_pb2.Trust:
    try:
        return json_format.Parse(path.read_text(), registry_pb2.Trust(), ignore_unknown_fields=True)
    except (OSError, json_format.ParseError, UnicodeDecodeError):
        return registry_pb2.Trust()  # nothing there: the first Assignments says it

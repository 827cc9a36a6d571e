from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import DataLossError, PreconditionError
from meshkit.signing import raw_public, sign
from meshkit.versions import version_digest
from node_agent.trust import TrustRecord

KEY = Ed25519PrivateKey.generate()
TRUST = registry_pb2.Trust(signed_only=True, keys=[registry_pb2.TrustedKey(name="release", public_key=raw_public(KEY))])


def version() -> registry_pb2.ModelVersion:
    made = registry_pb2.ModelVersion(name="m", version="1.0.0", runtime="python")
    made.digest = version_digest(made)
    return made


def test_trust_outlives_the_agent(tmp_path: Path) -> None:
    record, made = TrustRecord(tmp_path), version()
    record.check(made)
    assert record.set(TRUST)
    assert not record.set(TRUST)
    again = TrustRecord(tmp_path)
    with pytest.raises(PreconditionError):
        again.check(made)
    assert not again.allows(made.digest, made.signatures)
    made.signatures.append(sign(made, KEY))
    again.check(made)
    assert again.signed(made)
    assert again.allows(made.digest, made.signatures)
    (tmp_path / "trust.json").write_text("{")
    TrustRecord(tmp_path).check(version())


def test_a_signed_version_that_is_not_what_it_was_is_refused(tmp_path: Path) -> None:
    made = version()
    made.signatures.append(sign(made, KEY))
    made.self_test = "other"
    with pytest.raises(DataLossError):
        TrustRecord(tmp_path).check(made)

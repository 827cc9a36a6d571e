from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import AimeshError, ConflictError, DataLossError, InvalidInputError, PreconditionError
from meshkit.signing import check_allowed, generate, key_id, load_private, load_public, raw_public, sign, verify
from meshkit.versions import NOT_IN_DIGEST, check_digest, version_digest

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUST = registry_pb2.Trust(signed_only=True, keys=[registry_pb2.TrustedKey(name="release", public_key=raw_public(KEY))])


def version(**changes: object) -> registry_pb2.ModelVersion:
    files = [registry_pb2.ModelFile(path=path, digest=letter * 64, size=3) for path, letter in (("a", "1"), ("b", "2"))]
    made = registry_pb2.ModelVersion(name="m", version="1.0.0", runtime="onnx", files=files, parameters={"a": "1"})
    made.MergeFrom(registry_pb2.ModelVersion(**changes))  # type: ignore[arg-type]
    return made


@given(
    byte=st.integers(0, 63),
    field=st.sampled_from(["name", "version", "runtime", "self_test", "replaces"]),
    text=st.text(min_size=1, max_size=5),
)
def test_a_signature_fits_one_version_and_no_other(byte: int, field: str, text: str) -> None:
    signed = version()
    signed.signatures.append(sign(signed, KEY))
    assert verify(signed, TRUST).signer == "release"
    check_allowed(signed, TRUST)

    changed = registry_pb2.ModelVersion()
    changed.CopyFrom(signed)
    setattr(changed, field, getattr(signed, field) + text)
    changed.digest = version_digest(signed)  # what is claimed does not count
    assert "of something else" in verify(changed, TRUST).doubt
    raw = bytearray(signed.signatures[0].signature)
    raw[byte] ^= 1
    signed.signatures[0].signature = bytes(raw)
    assert verify(signed, TRUST).doubt == "the signature of key release is of something else"


def test_why_a_version_is_not_taken() -> None:
    unsigned, foreign = version(), version()
    foreign.signatures.append(sign(foreign, OTHER))
    for each, why in ((unsigned, "nobody signed it"), (foreign, f"key {key_id(raw_public(OTHER))} is not trusted")):
        with pytest.raises(PreconditionError, match=why) as caught:
            check_allowed(each, TRUST)
        assert caught.value.reason == "UNSIGNED"
        check_allowed(each, registry_pb2.Trust())


def test_the_digest_is_of_what_a_version_is() -> None:
    digest = version_digest(version())
    said = version(changelog="new", digest="x", requirements=registry_pb2.Requirements(memory_bytes=5))
    said.signatures.append(sign(said, KEY))
    said.kind = registry_pb2.KIND_MODEL
    said.files[0].chunks = "c" * 64
    said.files.reverse()
    assert version_digest(said) == digest
    for name in registry_pb2.ModelVersion.DESCRIPTOR.fields_by_name:
        assert (name in NOT_IN_DIGEST) == (_with(name) == digest) or name == "kind", name


def _with(name: str) -> str:
    """The digest when only this field is another."""
    changed = registry_pb2.ModelVersion()
    changed.CopyFrom(version())
    field = registry_pb2.ModelVersion.DESCRIPTOR.fields_by_name[name]
    if field.message_type is None:
        if field.is_repeated:
            getattr(changed, name).append("z")
        else:
            setattr(changed, name, registry_pb2.KIND_PROMPT if field.enum_type else "z")
    elif name == "parameters":
        changed.parameters["z"] = "z"
    elif field.is_repeated:
        getattr(changed, name).add()
    else:
        getattr(changed, name).SetInParent()
    return version_digest(changed)


def test_a_changed_entry_is_found() -> None:
    made = version()
    check_digest(made)
    made.digest = version_digest(made)
    check_digest(made)
    made.files[1].digest = "3" * 64
    with pytest.raises(DataLossError, match="recorded with"):
        check_digest(made)


def test_keys_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    public = generate(path)
    assert load_public(tmp_path / "release.key.pub") == public == raw_public(load_private(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    held = path.read_bytes()
    with pytest.raises(ConflictError, match=r"release.key"):
        generate(path)
    path.unlink()
    with pytest.raises(ConflictError, match=r"release.key.pub"):
        generate(path)
    assert b"PRIVATE" in held
    for wrong in (path, tmp_path / "release.key.pub", tmp_path):
        with pytest.raises(InvalidInputError):
            load_private(wrong)
    (tmp_path / "text").write_text("no key")
    with pytest.raises(AimeshError, match="public ed25519"):
        load_public(tmp_path / "text")

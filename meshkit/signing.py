"""Signatures of model versions: ed25519 over the 32 bytes of a version's digest (`meshkit.versions`).

The digest covers the digest of every file, so a signature vouches for every byte that a node loads. Deciding whose
signatures count is pure; keys on disk are PEM (PKCS #8 and SubjectPublicKeyInfo), as OpenSSL writes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import ConflictError, InvalidInputError, PreconditionError
from meshkit.versions import version_digest

KEY_BYTES = 32


@dataclass(frozen=True)
class Verdict:
    """What a version's signatures are worth."""

    signer: str = ""
    """Name of the trusted key that signed it; empty for none."""
    doubt: str = ""
    """Why no signature of it counts; empty when one does."""


def key_id(public_key: bytes) -> str:
    """The first 16 hex digits of the sha256 of a raw public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def verify(version: registry_pb2.ModelVersion, trust: registry_pb2.Trust) -> Verdict:
    """Which trusted key signed the version as it is, or why none did. The recorded digest is not believed."""
    return verify_digest(version_digest(version), version.signatures, trust)


def verify_digest(
    digest: str, signatures: Iterable[registry_pb2.VersionSignature], trust: registry_pb2.Trust
) -> Verdict:
    """The same for a digest that was computed before."""
    names = {key_id(key.public_key): key for key in trust.keys}
    doubts = []
    for signature in signatures:
        key = names.get(signature.key_id)
        if key is None:
            doubts.append(f"key {signature.key_id} is not trusted")
        elif fits(key.public_key, digest, signature.signature):
            return Verdict(signer=key.name)
        else:
            doubts.append(f"the signature of key {key.name} is of something else")
    return Verdict(doubt="; ".join(doubts) or "nobody signed it")


def check_allowed(version: registry_pb2.ModelVersion, trust: registry_pb2.Trust) -> None:
    """Raises PreconditionError when only signed versions are taken and no trusted key signed this one."""
    if not trust.signed_only:
        return
    verdict = verify(version, trust)
    if verdict.doubt:
        named = f"{version.name}:{version.version}"
        raise PreconditionError(
            f"{named}: {verdict.doubt}, and this mesh takes signed versions only",
            hint=f"aimesh trust sign {named} --key FILE, or push with --sign-key FILE; keys that count: "
            "aimesh trust list",
            reason="UNSIGNED",
        )


def fits(public_key: bytes, digest: str, signature: bytes) -> bool:
    """Whether the signature is this key's, over this digest."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, bytes.fromhex(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def sign(version: registry_pb2.ModelVersion, key: Ed25519PrivateKey) -> registry_pb2.VersionSignature:
    """The key's signature of a version as it is."""
    return registry_pb2.VersionSignature(
        key_id=key_id(raw_public(key)), signature=key.sign(bytes.fromhex(version_digest(version)))
    )


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def generate(path: Path) -> bytes:
    """Makes a key: the private half in `path`, for its owner only, the public one in `path`.pub. The raw public key.

    Raises ConflictError when one of the files is there: a key that is overwritten is lost.
    """
    public = path.with_name(f"{path.name}.pub")
    if public.exists():
        raise _taken(public)
    key = Ed25519PrivateKey.generate()
    form = serialization.Encoding.PEM
    private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(path, private, 0o600)
    _write_new(public, key.public_key().public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo), 0o644)
    return raw_public(key)


def load_private(path: Path) -> Ed25519PrivateKey:
    """A private key of `generate`, or of openssl genpkey -algorithm ed25519. Raises InvalidInputError."""
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _no_key(path, "private") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def load_public(path: Path) -> bytes:
    """The raw public key of a PEM file. Raises InvalidInputError."""
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise _no_key(path, "public") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key.public_bytes_raw()


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}", hint="name another file") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _taken(path: Path) -> ConflictError:
    return ConflictError(f"{path} exists already", hint="name another file, or move this key away first")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", hint="name a file that exists") from None


def _no_key(path: Path, half: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} holds no {half} ed25519 key in PEM without a password", hint="make a pair: aimesh trust keygen FILE"
    )

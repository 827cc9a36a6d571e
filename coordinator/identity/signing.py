"""The key with which all coordinators of a mesh sign API keys and hash secrets.

An API key is a JSON Web Token (RFC 7519) signed with Ed25519 (EdDSA, RFC 8037), so that Envoy can check it with the
public key alone. What is kept of a secret is its HMAC-SHA-256 under a secret derived from the same file by HKDF
(RFC 5869).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.settings import CoordinatorSettings
from meshkit.errors import InvalidInputError, PreconditionError, UnauthenticatedError
from meshkit.files import SECRET, write_atomically

ISSUER = "aimesh"
"""The tokens' claim `iss`."""
_ALGORITHM = "EdDSA"
_LONGEST = 4096
"""Characters that an API key may have."""


class Signer:
    """Signs and checks with one key file."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        self._pepper = HKDF(hashes.SHA256(), 32, salt=None, info=b"aimesh secrets hmac v1").derive(raw)
        self._public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    @property
    def fingerprint(self) -> str:
        """sha256 of the public key, in hex: tells two key files apart without saying anything of either."""
        return hashlib.sha256(self._public).hexdigest()

    def jwks(self) -> str:
        """The public key as a JSON Web Key Set."""
        x = base64.urlsafe_b64encode(self._public).rstrip(b"=").decode()
        key = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.fingerprint[:16], "alg": _ALGORITHM, "use": "sig"}
        return json.dumps({"keys": [key]})

    def sign(self, claims: dict[str, Any]) -> str:
        """The claims as a token."""
        headers = {"kid": self.fingerprint[:16]}
        return jwt.encode({"iss": ISSUER, **claims}, self._private, algorithm=_ALGORITHM, headers=headers)

    def key_id(self, text: str) -> str:
        """The id in an API key's text. Raises UnauthenticatedError when no coordinator of this mesh signed it."""
        if len(text) > _LONGEST:
            raise UnauthenticatedError(f"an API key of {len(text)} characters is none")
        try:
            # Whether it has ended is checked against what etcd holds, by the caller's clock.
            claims = jwt.decode(
                text,
                self._private.public_key(),
                algorithms=[_ALGORITHM],
                issuer=ISSUER,
                options={"require": ["jti"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError as error:
            raise UnauthenticatedError(
                f"the API key is not one of this mesh: {error}", hint="make one with: aimesh keys create"
            ) from None
        return str(claims["jti"])

    def hash(self, text: str) -> str:
        """What is kept of a secret's text."""
        return hmac.digest(self._pepper, text.encode(), "sha256").hex()

    def matches(self, text: str, kept: str) -> bool:
        """Whether a text is the one whose hash was kept; takes as long for any text."""
        return hmac.compare_digest(self.hash(text).encode(), kept.encode())


def create_key_file(path: Path) -> None:
    """Makes a key file (0600) unless there is one; two processes that do so at once end with the same one."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    write_atomically(mine, secret, SECRET)
    try:
        os.link(mine, path)
    except FileExistsError:
        return  # another process was first: its key is the one
    finally:
        mine.unlink()


def load_key_file(path: Path) -> Signer:
    """Reads a key file. Raises PreconditionError when it is not there, InvalidInputError when it holds no such key."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise PreconditionError(
            f"cannot read coordinator.auth.key_file {path}: {error.strerror}", hint="make one with: aimesh ca init"
        ) from None
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"coordinator.auth.key_file {path} holds no secret key in PEM: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInputError(f"the key in {path} is not Ed25519", hint="make one with: aimesh ca init")
    return Signer(key)


def signer(settings: CoordinatorSettings) -> Signer:
    """The signer of a coordinator: from its key file, or from one of its own that is made when it is not there."""
    path = settings.auth.key_file
    if path is None:
        path = settings.data_dir / "api-keys.pem"
        create_key_file(path)
    return load_key_file(path)


def jwks(settings: CoordinatorSettings) -> str:
    """The JSON Web Key Set with which Envoy checks the API keys of this mesh."""
    return signer(settings).jwks()


def key_file_differs(own: str, mesh: str) -> PreconditionError:
    """This coordinator's key file is not the one with which the mesh's API keys are signed."""
    return PreconditionError(
        f"this coordinator's key file ({own[:16]}) is not the one with which the mesh's API keys are signed "
        f"({mesh[:16]})",
        hint="give every coordinator the same coordinator.auth.key_file",
        reason="KEY_FILE_DIFFERS",
    )

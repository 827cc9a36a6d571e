"""The files of an authority and of what it issues, as `aimesh ca` keeps them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.identity.signing import create_key_file, load_key_file
from meshkit.certificates import Authority, Names, key_pem, new_key, pem
from meshkit.credentials import FILES
from meshkit.errors import ConflictError, NotFoundError
from meshkit.files import SECRET, write_atomically

CA_CERT, CA_KEY, API_KEYS, JWKS = "ca.pem", "ca.key", "api-keys.pem", "jwks.json"
"""Files in an authority's directory."""


def create_authority(folder: Path) -> None:
    """A new authority, and the key that signs API keys with its public half. Raises ConflictError when there is one."""
    if (folder / CA_KEY).exists():
        raise ConflictError(
            f"{folder} holds an authority already",
            hint="every certificate of its mesh depends on it; choose another --dir",
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = Authority.create(datetime.now(UTC))
    create_key_file(folder / API_KEYS)
    write_atomically(folder / JWKS, load_key_file(folder / API_KEYS).jwks().encode() + b"\n")
    write_atomically(folder / CA_CERT, pem(authority.certificate))
    write_atomically(folder / CA_KEY, key_pem(authority.key), SECRET)


def load_authority(folder: Path) -> Authority:
    """The authority in a directory. Raises NotFoundError when there is none."""
    try:
        return Authority.load((folder / CA_CERT).read_bytes(), (folder / CA_KEY).read_bytes())
    except OSError as error:
        raise NotFoundError(
            f"no authority in {folder}: {error.strerror}: {error.filename}", hint=f"run: aimesh ca init --dir {folder}"
        ) from None


def issue(folder: Path, names: Names, lifetime: timedelta, out: Path) -> None:
    """A new key and certificate from the authority in a directory. Raises NotFoundError."""
    authority, key = load_authority(folder), new_key()
    certificate = authority.issue(names, key.public_key(), datetime.now(UTC), lifetime)
    write_identity(out, key, certificate, (folder / CA_CERT).read_bytes())


def write_identity(out: Path, key: ec.EllipticCurvePrivateKey, certificate: bytes, ca: bytes) -> None:
    """Writes ca.pem, key.pem and cert.pem, the certificate last: who reads in between keeps what it has."""
    out.mkdir(parents=True, exist_ok=True)
    replace_identity({name: out / file for name, file in FILES.items()}, key, certificate, ca)


def replace_identity(files: dict[str, Path], key: ec.EllipticCurvePrivateKey, certificate: bytes, ca: bytes) -> None:
    """The same for files that lie elsewhere, which keep their owner when root replaces them."""
    for name, content, mode in (("ca", ca, None), ("key", key_pem(key), SECRET), ("cert", certificate, None)):
        path = files[name]
        owner = path.stat() if path.exists() else None
        write_atomically(path, content, mode)
        if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(path, owner.st_uid, owner.st_gid)

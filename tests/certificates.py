"""Certificates of a mesh that lives as long as a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from meshkit.certificates import Authority, Names, key_pem, new_key, pem
from meshkit.tls import Identity, Role, TlsSettings


class TestAuthority:
    """An authority with its files in a folder."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.create(datetime.now(UTC))
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(pem(self.authority.certificate))

    def issue(self, role: Role, name: str, *, lives: timedelta = timedelta(hours=1)) -> TlsSettings:
        """Files of a new certificate for loopback; written over older ones of the same name."""
        key = new_key()
        cert, secret = self.folder / f"{role}-{name}.crt", self.folder / f"{role}-{name}.key"
        names = Names(Identity(role, name), ("127.0.0.1", "::1"), ("localhost",))
        cert.write_bytes(self.authority.issue(names, key.public_key(), datetime.now(UTC), lives))
        secret.write_bytes(key_pem(key))
        return TlsSettings(ca=self.ca, cert=cert, key=secret)

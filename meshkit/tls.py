"""TLS on every link: who one is by certificate, and credentials that follow the files when they are renewed.

An identity is a URI name in the certificate, spiffe://aimesh/<role>/<id> (the form of SPIFFE IDs, github.com/spiffe).
Both ends of a link show a certificate of the mesh's own authority.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Literal, get_args

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from meshkit.errors import InvalidInputError, PreconditionError

log = structlog.get_logger()

Role = Literal["node", "coordinator", "gateway", "etcd", "client", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
COORDINATOR_NAME = "coordinator.aimesh.internal"
"""Host name in coordinators' certificates alone: gRPC clients can check a host name of a server, and no URI name."""
_URI = re.compile(rf"spiffe://aimesh/({'|'.join(ROLES)})/([A-Za-z0-9][A-Za-z0-9._-]{{0,62}})")


@plain_dataclass(frozen=True)
class Identity:
    """Who holds a certificate."""

    role: Role
    id: str

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"spiffe://aimesh/{self.role}/{self.id}"

    @classmethod
    def parse(cls, uri: str) -> Identity | None:
        """From a certificate's URI name; None when it is none of the mesh's."""
        found = _URI.fullmatch(uri)
        return cls(found[1], found[2]) if found else None  # type: ignore[arg-type]  # the expression allows roles only


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TlsSettings:
    """A [<role>.tls] table. All three files, or none: then the link is plain text and only loopback is listened on."""

    ca: Path | None = field(default=None, metadata={"doc": "PEM file of the mesh's authority (aimesh ca init)"})
    cert: Path | None = field(
        default=None, metadata={"doc": "PEM file of this process's certificate (aimesh ca issue)"}
    )
    key: Path | None = field(default=None, metadata={"doc": "PEM file of that certificate's key"})

    @model_validator(mode="after")
    def _all_or_none(self) -> TlsSettings:
        if len({path is None for path in (self.ca, self.cert, self.key)}) > 1:
            raise ValueError("ca, cert and key go together: set all three, or none")
        return self

    @property
    def on(self) -> bool:
        """Whether links are encrypted and authenticated."""
        return self.ca is not None

    def read(self) -> tuple[bytes, bytes, bytes]:
        """(ca, cert, key) in PEM. Raises PreconditionError naming the file that cannot be read, or the wrong pair."""
        found = []
        for path in (self.ca, self.cert, self.key):
            try:
                found.append(path.read_bytes() if path else b"")
            except OSError as error:
                raise PreconditionError(
                    f"cannot read {path}: {error.strerror}", hint="see: aimesh ca issue --help", reason="TLS_FILE"
                ) from None
        ca, cert, key = found
        if cert and not _pair(cert, key):
            raise PreconditionError(
                f"{self.key} is not the key of the certificate in {self.cert}",
                hint="replace both together: write the key, then the certificate",
                reason="TLS_FILE",
            )
        return ca, cert, key


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials | None:
    """For a new channel, from the files as they are now; None for plain text. Raises PreconditionError."""
    if not tls.on:
        return None
    ca, cert, key = tls.read()
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_credentials(tls: TlsSettings) -> grpc.ServerCredentials | None:
    """Asks every client for a certificate; each handshake uses the files as they are then. None for plain text.

    Raises PreconditionError when the files cannot be read now. Later, a file that cannot be read is logged and the
    certificates read before stay in use.
    """
    return _dynamic(tls, require_client_certificate=True) if tls.on else None


def enrollment_credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """For the one port that machines without a certificate may reach: the server's certificate alone."""
    return _dynamic(tls, require_client_certificate=False)


def check_binding(host: str, tls: TlsSettings, *, insecure: bool, table: str, key: str = "host") -> None:
    """Raises InvalidInputError when `host` is reachable from other machines and nothing would protect it."""
    if tls.on or insecure or is_loopback(host):
        return
    raise InvalidInputError(
        f"{table}.{key} = {host!r} would be reachable from other machines without TLS",
        hint=f"set [{table}.tls] (see: aimesh ca init), or pass --insecure if the network is trusted",
        reason="TLS_REQUIRED",
    )


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is reached from this machine only. Other names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _dynamic(tls: TlsSettings, *, require_client_certificate: bool) -> grpc.ServerCredentials:
    current = tls.read()

    def configuration(files: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        ca, cert, key = files
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal current
        try:
            files = tls.read()
        except PreconditionError as error:
            log.warning("tls.not_renewed", reason=error.message)
            return None
        if files == current:
            return None
        current = files
        log.info("tls.renewed", certificate=str(tls.cert))
        return configuration(files)

    return grpc.dynamic_ssl_server_credentials(
        configuration(current),
        fetch,  # type: ignore[arg-type]  # None, which the stubs leave out, keeps what is in use
        require_client_authentication=require_client_certificate,
    )


def _pair(cert: bytes, key: bytes) -> bool:
    """Whether they belong together: false for a moment while files are being replaced."""
    try:
        secret = serialization.load_pem_private_key(key, password=None)
        return x509.load_pem_x509_certificate(cert).public_key() == secret.public_key()
    except (ValueError, TypeError):
        return False

"""Which certificate runs, which one lies on the disk, and when Triton is started anew for the one on the disk. Pure.

Connections to coordinators take a new certificate at once. Triton reads its own only as it starts, and a restart costs
what it serves some seconds: so it waits until the certificate that it runs with is in the last third of its life.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from meshkit.certificates import names_of, parse_certificate
from meshkit.errors import PreconditionError


@dataclass(frozen=True)
class Validity:
    """From when to when a certificate is valid."""

    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, certificate: bytes) -> Validity:
        """Of a certificate in PEM. Raises InvalidInputError."""
        found = parse_certificate(certificate)
        return cls(found.not_valid_before_utc, found.not_valid_after_utc)


def restart_at(running: Validity, spread: float) -> datetime:
    """When Triton is to take a renewed certificate: in the first half of the last third of the running one's life.

    `spread`, 0 to 1, is another for each node (`spread_of`), so that the nodes of a mesh do not restart at once.
    """
    life = running.ends - running.begins
    return running.begins + life * (2 / 3 + spread / 6)


def spread_of(node_id: str) -> float:
    """A number from 0 to 1 that is a node's own, and stays the same when its agent restarts."""
    return int.from_bytes(hashlib.sha256(node_id.encode()).digest()[:4]) / 2**32


def server_name(certificate: bytes, host: str) -> str:
    """The name to expect of a server with this certificate that is called at `host`; empty when that is `host` itself.

    Raises InvalidInputError when the certificate is none of the mesh's, PreconditionError when no server can show it.
    """
    names = names_of(parse_certificate(certificate))
    known = (*names.ips, *names.dns)
    if not known:
        raise PreconditionError(
            "the node's certificate names no address, so that no client could trust its Triton",
            hint="issue it with the node's address: aimesh ca issue --ip",
        )
    return "" if host.strip("[]") in known else known[0]

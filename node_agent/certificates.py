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
from meshkit.tls import TlsSettings


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


@dataclass(frozen=True)
class Shown:
    """What a Triton read as it started; empty without TLS."""

    certificate: str = ""
    """In PEM, its own."""
    authority: str = ""
    """Digest of the file of the authorities that it trusts."""

    @classmethod
    def on_disk(cls, tls: TlsSettings) -> Shown:
        """What one that starts now would read. Raises PreconditionError."""
        ca, certificate, _ = tls.read()
        return cls(certificate.decode(), hashlib.sha256(ca).hexdigest()) if tls.on else cls()


@dataclass(frozen=True)
class Plan:
    """When Triton is started anew for what is on the disk by now, and what to say of it; None for not by itself."""

    at: datetime | None = None
    message: str = ""


def plan_restart(running: Shown, newest: Shown, spread: float, now: datetime, *, agent_started: bool) -> Plan:
    """`agent_started`: the agent has just started, which is how an operator asks for what cannot wait.

    Other authorities are put in place host by host, by hand, and Triton trusts those that it read: it takes the others
    when its agent is restarted. `spread` is the node's own (`spread_of`).
    """
    if running.authority != newest.authority:
        if agent_started:
            return Plan(now, "is started anew for the authorities that are trusted by now")
        return Plan(None, "trusts the authorities from before ca changed, until the agent is restarted")
    if running.certificate == newest.certificate:
        return Plan()
    at = restart_at(Validity.of(running.certificate.encode()), spread)
    said = at.isoformat(timespec="minutes")
    return Plan(at, f"shows its certificate from before the renewal until it is started anew, at {said} or earlier")


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

"""What a host is to run: the values that `aimesh install` was given, checked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, get_args

from meshkit.errors import InvalidInputError

RoleName = Literal["agent", "coordinator", "gateway", "etcd"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)
ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
ENROLL_PORT = 8504
AGENT_PORT = 8505
"""Of the agents' own servers, where they fetch from each other."""
DEFAULT_PORTS: dict[RoleName, int] = {"agent": 8001, "coordinator": 8503, "gateway": 8500, "etcd": ETCD_CLIENT_PORT}

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HOST_PORT = re.compile(r"(?P<host>[^\s:/,]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Host:
    """One role on one host, as an operator wants it."""

    role: RoleName
    id: str
    """Of the node, coordinator, gateway or member of etcd; unique among its kind."""
    address: str
    """IP address that others use."""
    port: int
    """The role's port; for an agent, Triton's gRPC port."""
    coordinators: tuple[str, ...] = ()
    """host:port; for agents and gateways."""
    etcd: tuple[str, ...] = ()
    """host:port of etcd's members; for coordinators."""
    cluster: tuple[tuple[str, str], ...] = ()
    """(member, IP address) of each member of etcd, this one among them; for etcd."""
    enroll: bool = False
    """A coordinator that has the authority's key and gives certificates."""
    insecure: bool = False
    """Plain text on addresses that other machines reach."""

    @property
    def tls(self) -> bool:
        """Whether links are encrypted: always, but on loopback and where it was declined."""
        return not self.insecure and not ipaddress.ip_address(self.address).is_loopback


def check(host: Host) -> Host:
    """The host itself. Raises InvalidInputError naming the option that is wrong, or missing."""
    if not _ID.fullmatch(host.id):
        raise _wrong("--id", host.id, "use up to 63 lower-case letters, digits and '-', the first a letter or digit")
    _check_ip("--address", host.address)
    if not 1 <= host.port <= 65535:
        raise _wrong("--port", str(host.port), "use 1 to 65535")
    if host.role in ("agent", "gateway"):
        _check_addresses("--coordinators", host.coordinators, DEFAULT_PORTS["coordinator"])
    elif host.role == "coordinator":
        _check_addresses("--etcd", host.etcd, ETCD_CLIENT_PORT)
        if host.enroll and not host.tls:
            raise InvalidInputError("--enroll gives certificates, and this coordinator has no TLS", hint="leave it out")
    else:
        _check_cluster(host)
    return host


def parse_cluster(text: str) -> tuple[tuple[str, str], ...]:
    """'a=10.0.0.1,b=10.0.0.2' → (('a', '10.0.0.1'), ('b', '10.0.0.2')). Raises InvalidInputError."""
    members = []
    for part in text.split(","):
        name, separator, address = part.partition("=")
        if not separator:
            raise _wrong("--cluster", text, "give each member as NAME=IP, with commas between them")
        members.append((name, address))
    return tuple(members)


def _check_addresses(option: str, addresses: tuple[str, ...], port: int) -> None:
    if not addresses:
        raise InvalidInputError(f"{option} is needed", hint=f"for example: {option} 10.0.0.1:{port},10.0.0.2:{port}")
    for address in addresses:
        found = _HOST_PORT.fullmatch(address)
        if not found or not 1 <= int(found["port"]) <= 65535:
            raise _wrong(option, address, "give host:port, with commas between several")


def _check_cluster(host: Host) -> None:
    members = dict(host.cluster)
    if len(members) != len(host.cluster) or len(set(members.values())) != len(members):
        raise _wrong("--cluster", _shown(host), "each member needs a name and an address of its own")
    for name, address in host.cluster:
        if not _ID.fullmatch(name):
            raise _wrong("--cluster", name, "name members with lower-case letters, digits and '-'")
        _check_ip("--cluster", address)
    if members.get(host.id) != host.address:
        raise _wrong("--cluster", _shown(host), f"it must hold this member: {host.id}={host.address}")
    if len(members) % 2 == 0:
        raise _wrong(
            "--cluster",
            _shown(host),
            f"{len(members)} members bear no more failures than {len(members) - 1}: use 1, 3, 5",
        )


def _check_ip(option: str, text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise _wrong(option, text, "give an IP address: routes and certificates carry no host names") from None


def _shown(host: Host) -> str:
    return ",".join(f"{name}={address}" for name, address in host.cluster)


def _wrong(option: str, value: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{option} {value!r} is not allowed", hint=hint)

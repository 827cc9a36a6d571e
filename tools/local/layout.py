"""Where everything of a one-machine mesh lies: ports and directories. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshkit.errors import InvalidInputError

BLOCK = 100
"""Ports between the bases that are tried when none was asked for."""
FIRST_BASE, LAST_BASE = 8500, 30000
"""Bases tried in turn; below the kernel's ephemeral ports (32768), which a client may hold at any time."""
MOST_NODES = 16
MOST_COORDINATORS = 5
ETCD_COUNTS = (1, 3)
ADMIN = "admin"
"""Whose certificate the command line shows."""
_NODES_AT, _PER_NODE = 10, 5
_ETCD_AT = ((1, 2), (94, 95), (96, 97))
"""Client and peer port of each of etcd's members, from the base; those that not every mesh has lie behind the nodes."""
_COORDINATORS_AT = (3, 90, 91, 92, 93)


@dataclass(frozen=True)
class NodePorts:
    """One node's Triton."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class Share:
    """What one node may lend."""

    memory_bytes: int
    cpu_cores: float


@dataclass(frozen=True)
class Layout:
    """A mesh's place on this machine: a pure function of directory, port base and number of nodes."""

    state_dir: Path
    port_base: int
    nodes: int
    coordinator_count: int = 1
    etcd_count: int = 1
    tls: bool = False
    """Every link is encrypted and authenticated, with certificates of an authority in `tls_dir`."""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MOST_NODES:
            raise InvalidInputError(f"--nodes {self.nodes}: one machine takes 1 to {MOST_NODES} nodes")
        if not 1 <= self.coordinator_count <= MOST_COORDINATORS:
            raise InvalidInputError(f"--coordinators {self.coordinator_count}: choose 1 to {MOST_COORDINATORS}")
        if self.etcd_count not in ETCD_COUNTS:
            raise InvalidInputError(f"--etcd {self.etcd_count}: choose 1 member or 3, so that there is a majority")
        if not 1024 <= self.port_base <= 65535 - BLOCK:
            raise InvalidInputError(f"--port-base {self.port_base}: must be 1024 to {65535 - BLOCK}")

    @property
    def claim_port(self) -> int:
        """Held by the supervisor as long as it lives, so that two meshes never choose one block."""
        return self.port_base

    @property
    def etcd(self) -> tuple[str, ...]:
        """The client addresses of etcd's members, host:port."""
        return tuple(f"127.0.0.1:{self.port_base + port}" for port, _ in _ETCD_AT[: self.etcd_count])

    @property
    def etcd_peers(self) -> tuple[str, ...]:
        """The addresses at which etcd's members reach each other, host:port."""
        return tuple(f"127.0.0.1:{self.port_base + port}" for _, port in _ETCD_AT[: self.etcd_count])

    @property
    def etcd_names(self) -> tuple[str, ...]:
        """The processes of etcd's members."""
        return _numbered("etcd", self.etcd_count)

    @property
    def coordinators(self) -> tuple[str, ...]:
        """The coordinators' addresses, host:port."""
        return tuple(f"127.0.0.1:{self.port_base + port}" for port in _COORDINATORS_AT[: self.coordinator_count])

    @property
    def coordinator_names(self) -> tuple[str, ...]:
        """The coordinators' processes."""
        return _numbered("coordinator", self.coordinator_count)

    @property
    def enroll_port(self) -> int:
        """Where machines with a join token get certificates from the first coordinator, with TLS."""
        return self.port_base + 6

    @property
    def gateway_port(self) -> int:
        """The port that clients use."""
        return self.port_base + 4

    @property
    def gateway_admin_port(self) -> int:
        """Envoy's own."""
        return self.port_base + 5

    @property
    def gateway(self) -> str:
        """The gateway's address, host:port."""
        return f"127.0.0.1:{self.gateway_port}"

    def node_id(self, index: int) -> str:
        """The id of node `index`, from 0."""
        return f"node-{index + 1}"

    def node_ports(self, index: int) -> NodePorts:
        """The Triton ports of node `index`, from 0."""
        first = self.port_base + _NODES_AT + _PER_NODE * index
        return NodePorts(first, first + 1, first + 2)

    def ports(self) -> dict[int, str]:
        """Every port the mesh listens on, and what for."""
        found = {
            self.claim_port: "the supervisor",
            self.gateway_port: "the gateway",
            self.gateway_admin_port: "the gateway's admin page",
        }
        found |= {_port(address): name for address, name in zip(self.etcd, self.etcd_names, strict=True)}
        found |= {
            _port(address): f"{name}'s peers" for address, name in zip(self.etcd_peers, self.etcd_names, strict=True)
        }
        found |= {_port(address): name for address, name in zip(self.coordinators, self.coordinator_names, strict=True)}
        if self.tls:
            found[self.enroll_port] = "enrollment"
        for index in range(self.nodes):
            ports = self.node_ports(index)
            found |= dict.fromkeys((ports.grpc, ports.http, ports.metrics), f"{self.node_id(index)}'s Triton")
        return found

    @property
    def xds_bootstrap(self) -> Path:
        """What GRPC_XDS_BOOTSTRAP names."""
        return self.state_dir / "xds_bootstrap.json"

    @property
    def tls_dir(self) -> Path:
        """The authority, and a directory with certificate and key for each process and for people."""
        return self.state_dir / "tls"

    @property
    def client_tls_dir(self) -> Path | None:
        """What people and programs of this machine show to the mesh; None without TLS."""
        return self.tls_dir / ADMIN if self.tls else None

    def data_dir(self, name: str) -> Path:
        """The data of one process."""
        return self.state_dir / "data" / name

    def log_file(self, name: str) -> Path:
        """The log of one process."""
        return self.state_dir / "logs" / f"{name}.log"

    def config_file(self, name: str) -> Path:
        """The configuration of one process."""
        return self.state_dir / "config" / f"{name}.toml"


def divide(memory_bytes: int, cpu_cores: float, nodes: int) -> Share:
    """Divides a machine between its nodes, leaving 20 % of the memory, at least 1 GiB, for everything else."""
    headroom = max(memory_bytes // 5, 1 << 30)
    return Share(max((memory_bytes - headroom) // nodes, 256 << 20), round(cpu_cores / nodes, 2))


def _numbered(name: str, count: int) -> tuple[str, ...]:
    """name, name-2, name-3, ..."""
    return (name, *(f"{name}-{number}" for number in range(2, count + 1)))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """TOML text of tables of strings, numbers, booleans, lists of strings, and tables of these."""
    lines: list[str] = []
    for name, table in tables.items():
        nested = {f"{name}.{key}": value for key, value in table.items() if isinstance(value, dict)}
        lines += [f"[{name}]", *(f"{key} = {toml_value(v)}" for key, v in table.items() if not isinstance(v, dict)), ""]
        if nested:
            lines.append(to_toml(nested))
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A string, number, boolean, list of these, or flat table, as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)

"""Where everything of a one-machine mesh lies: ports, directories, and the child processes as data. Pure."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshkit.errors import InvalidInputError

BLOCK = 100
"""Ports between the bases that are tried when none was asked for."""
FIRST_BASE, LAST_BASE = 8500, 30000
"""Bases tried in turn; below the kernel's ephemeral ports (32768), which a client may hold at any time."""
MOST_NODES = 16
_NODES_AT, _PER_NODE = 10, 5


@dataclass(frozen=True)
class NodePorts:
    """One node's Triton."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class Child:
    """A process to start."""

    name: str
    argv: tuple[str, ...]
    config: tuple[Path, str] | None
    """The configuration file to write before, and its text."""
    grace_s: float
    """Seconds between SIGTERM and SIGKILL."""


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

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MOST_NODES:
            raise InvalidInputError(f"--nodes {self.nodes}: one machine takes 1 to {MOST_NODES} nodes")
        if not 1024 <= self.port_base <= 65535 - BLOCK:
            raise InvalidInputError(f"--port-base {self.port_base}: must be 1024 to {65535 - BLOCK}")

    @property
    def claim_port(self) -> int:
        """Held by the supervisor as long as it lives, so that two meshes never choose one block."""
        return self.port_base

    @property
    def etcd(self) -> str:
        """etcd's client address, host:port."""
        return f"127.0.0.1:{self.port_base + 1}"

    @property
    def etcd_peer(self) -> str:
        """etcd's peer address, host:port."""
        return f"127.0.0.1:{self.port_base + 2}"

    @property
    def coordinators(self) -> tuple[str, ...]:
        """The coordinators' addresses, host:port."""
        return (f"127.0.0.1:{self.port_base + 3}",)

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
            self.port_base + 1: "etcd",
            self.port_base + 2: "etcd's peers",
            self.port_base + 3: "the coordinator",
            self.gateway_port: "the gateway",
            self.gateway_admin_port: "the gateway's admin page",
        }
        for index in range(self.nodes):
            ports = self.node_ports(index)
            found |= dict.fromkeys((ports.grpc, ports.http, ports.metrics), f"{self.node_id(index)}'s Triton")
        return found

    @property
    def xds_bootstrap(self) -> Path:
        """What GRPC_XDS_BOOTSTRAP names."""
        return self.state_dir / "xds_bootstrap.json"

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


def children(layout: Layout, share: Share, etcd_binary: str) -> list[Child]:
    """Every process of the mesh, in starting order; the reverse order ends it well, the gateway put first."""
    return [
        Child("etcd", _etcd_argv(layout, etcd_binary), None, grace_s=5.0),
        _role(layout, "coordinator", "coordinator", _coordinator_table(layout), grace_s=10.0),
        *(
            _role(layout, "agent", layout.node_id(index), _agent_table(layout, index, share), grace_s=20.0)
            for index in range(layout.nodes)
        ),
        _role(layout, "gateway", "gateway", _gateway_table(layout), grace_s=5.0),
    ]


def stop_order(names: list[str]) -> list[list[str]]:
    """Who stops after whom: gateway, then all agents (they drain), coordinator, etcd."""
    last = ("gateway", "coordinator", "etcd")
    agents = [name for name in names if name not in last]
    groups = [["gateway"], agents, ["coordinator"], ["etcd"]]
    return [found for group in groups if (found := [name for name in group if name in names])]


def _etcd_argv(layout: Layout, binary: str) -> tuple[str, ...]:
    client, peer = f"http://{layout.etcd}", f"http://{layout.etcd_peer}"
    return (
        binary,
        "--name=aimesh",
        f"--data-dir={layout.data_dir('etcd')}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=aimesh={peer}",
        f"--quota-backend-bytes={2 << 30}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--log-level=warn",
    )


def _role(layout: Layout, role: str, name: str, table: dict[str, Any], grace_s: float) -> Child:
    config = layout.config_file(name)
    argv = (sys.executable, "-m", "tools.cli.main", role, "--config", str(config))
    return Child(name, argv, (config, to_toml({"log": {"format": "json"}, role: table})), grace_s)


def _coordinator_table(layout: Layout) -> dict[str, Any]:
    return {
        "id": "coordinator-1",
        "host": "127.0.0.1",
        "port": layout.port_base + 3,
        "data_dir": str(layout.data_dir("coordinator")),
        "etcd": {"endpoints": [layout.etcd]},
    }


def _agent_table(layout: Layout, index: int, share: Share) -> dict[str, Any]:
    ports = layout.node_ports(index)
    return {
        "node_id": layout.node_id(index),
        "address": "127.0.0.1",
        "coordinators": list(layout.coordinators),
        "data_dir": str(layout.data_dir(layout.node_id(index))),
        "memory_bytes": share.memory_bytes,
        "cpu_cores": share.cpu_cores,
        "drain_s": 10.0,
        "triton": {"grpc_port": ports.grpc, "http_port": ports.http, "metrics_port": ports.metrics},
    }


def _gateway_table(layout: Layout) -> dict[str, Any]:
    return {
        "id": "gateway",
        "host": "127.0.0.1",
        "port": layout.gateway_port,
        "admin_port": layout.gateway_admin_port,
        "coordinators": list(layout.coordinators),
        "data_dir": str(layout.data_dir("gateway")),
    }


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

"""The processes of a one-machine mesh as data: command lines, configuration files, order. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshkit.certificates import ETCD_CLIENT, ETCD_MEMBER
from meshkit.credentials import FILES
from tools.certificates import API_KEYS, CA_KEY, JWKS
from tools.local.layout import Layout, Share, to_toml


@dataclass(frozen=True)
class Child:
    """A process to start."""

    name: str
    argv: tuple[str, ...]
    config: tuple[Path, str] | None
    """The configuration file to write before, and its text."""
    grace_s: float
    """Seconds between SIGTERM and SIGKILL."""


def children(layout: Layout, share: Share, etcd_binary: str) -> list[Child]:
    """Every process of the mesh, in starting order; the reverse order ends it well, the gateway put first."""
    return [
        *(
            Child(name, _etcd_argv(layout, index, etcd_binary), None, grace_s=5.0)
            for index, name in enumerate(layout.etcd_names)
        ),
        *(
            _role(layout, "coordinator", name, _coordinator_table(layout, index), grace_s=10.0)
            for index, name in enumerate(layout.coordinator_names)
        ),
        *(
            _role(layout, "agent", layout.node_id(index), _agent_table(layout, index, share), grace_s=20.0)
            for index in range(layout.nodes)
        ),
        _role(layout, "gateway", "gateway", _gateway_table(layout), grace_s=5.0),
    ]


def stop_order(names: list[str]) -> list[list[str]]:
    """Who stops after whom: gateway, then all agents (they drain), coordinators, etcd's members.

    The members go one by one: a leader that stops hands over to another, and would wait in vain for one that stops too.
    """
    groups: dict[str, list[str]] = {"gateway": [], "agent": [], "coordinator": []}
    for name in names:
        kind = kind_of(name)
        groups.setdefault(name if kind == "etcd" else kind, []).append(name)
    return [group for group in groups.values() if group]


def kind_of(name: str) -> str:
    """gateway, coordinator, etcd or agent: what a process of this name is."""
    kind = name.partition("-")[0]
    return kind if kind in ("gateway", "coordinator", "etcd") else "agent"


def _etcd_argv(layout: Layout, index: int, binary: str) -> tuple[str, ...]:
    scheme = "https" if layout.tls else "http"
    name, client, peer = layout.etcd_names[index], layout.etcd[index], layout.etcd_peers[index]
    cluster = zip(layout.etcd_names, layout.etcd_peers, strict=True)
    return (
        binary,
        f"--name={name}",
        f"--data-dir={layout.data_dir(name)}",
        f"--listen-client-urls={scheme}://{client}",
        f"--advertise-client-urls={scheme}://{client}",
        f"--listen-peer-urls={scheme}://{peer}",
        f"--initial-advertise-peer-urls={scheme}://{peer}",
        f"--initial-cluster={','.join(f'{member}={scheme}://{address}' for member, address in cluster)}",
        f"--quota-backend-bytes={2 << 30}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--log-level=warn",
        *(_etcd_tls(layout, name) if layout.tls else ()),
    )


def _etcd_tls(layout: Layout, name: str) -> tuple[str, ...]:
    """Coordinators and members show certificates of the mesh's authority; etcd reads the files at each handshake."""
    files = _tls_table(layout, name)
    return (
        # The authority signs nodes and gateways too, and who reaches etcd can do everything.
        f"--client-cert-allowed-hostname={ETCD_CLIENT}",
        f"--peer-cert-allowed-hostname={ETCD_MEMBER}",
        *_etcd_files(files),
    )


def _etcd_files(files: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        flag
        for link in ("", "peer-")
        for flag in (
            f"--{link}trusted-ca-file={files['ca']}",
            f"--{link}cert-file={files['cert']}",
            f"--{link}key-file={files['key']}",
            f"--{link}client-cert-auth",
        )
    )


def _tls_table(layout: Layout, name: str) -> dict[str, str]:
    return {key: str(layout.tls_dir / name / file) for key, file in FILES.items()}


def _role(layout: Layout, role: str, name: str, table: dict[str, Any], grace_s: float) -> Child:
    config = layout.config_file(name)
    argv = (sys.executable, "-m", "tools.cli.main", role, "--config", str(config))
    if layout.tls:
        table = {**table, "tls": _tls_table(layout, name)}
    return Child(name, argv, (config, to_toml({"log": {"format": "json"}, role: table})), grace_s)


def _coordinator_table(layout: Layout, index: int) -> dict[str, Any]:
    name = layout.coordinator_names[index]
    experiments = layout.data_dir(layout.coordinator_names[0]) / "experiments.sqlite"
    table: dict[str, Any] = {
        "id": f"coordinator-{index + 1}",
        "host": "127.0.0.1",
        "port": int(layout.coordinators[index].rpartition(":")[2]),
        "data_dir": str(layout.data_dir(name)),
        "etcd": {"endpoints": _from(index, layout.etcd), **(_tls_table(layout, name) if layout.tls else {})},
        # One key for all coordinators, so that each knows the API keys that another gave.
        "auth": {"key_file": str(layout.tls_dir / API_KEYS)},
        "experiments": {"url": f"sqlite:///{experiments}", "one_machine": True},
    }
    if layout.tls and index == 0:
        table["enroll_port"] = layout.enroll_port
        table["auth"]["ca_key"] = str(layout.tls_dir / CA_KEY)
    return table


def _agent_table(layout: Layout, index: int, share: Share) -> dict[str, Any]:
    ports = layout.node_ports(index)
    return {
        "node_id": layout.node_id(index),
        "address": "127.0.0.1",
        "coordinators": _from(index, layout.coordinators),
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
        **({"api_keys": str(layout.tls_dir / JWKS)} if layout.tls else {}),
    }


def _from(index: int, addresses: tuple[str, ...]) -> list[str]:
    """All addresses, beginning elsewhere for each index: those who take the first that answers are spread over them."""
    first = index % len(addresses)
    return [*addresses[first:], *addresses[:first]]

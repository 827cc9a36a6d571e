"""The configuration file of each role. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tools.local.layout import to_toml
from tools.systemd.host import AGENT_PORT, ENROLL_PORT, ETCD_PEER_PORT, Host, RoleName

CONFIG_DIR = "/etc/aimesh"
STATE_DIR = "/var/lib/aimesh"
_HEAD = "# Yours to change: `aimesh install` writes it again only with --force."


def config_path(role: RoleName) -> str:
    """Where a role's configuration is."""
    return f"{CONFIG_DIR}/{role}.{'yaml' if role == 'etcd' else 'toml'}"


def tls_dir(role: RoleName) -> str:
    """Where a role's certificates are: ca.pem, cert.pem and key.pem."""
    return f"{CONFIG_DIR}/tls/{role}"


def data_dir(role: RoleName) -> str:
    """Where a role keeps its data."""
    return f"{STATE_DIR}/{role}"


def config_text(host: Host) -> str:
    """The configuration that makes the role do what the operator asked for."""
    if host.role == "etcd":
        return f"{_HEAD} Read by etcd.\n{_etcd_yaml(host)}"
    table = _TABLES[host.role](host)
    if host.insecure:
        table["insecure"] = True
    if host.tls:
        table["tls"] = _tls(host.role)
    text = to_toml({"log": {"format": "json"}, host.role: table})
    return f"{_HEAD} Every key is in config.example.toml.\n{text.rstrip()}\n"


def _tls(role: RoleName, prefix: str = "") -> dict[str, str]:
    return {key: f"{tls_dir(role)}/{prefix}{key}.pem" for key in ("ca", "cert", "key")}


def _agent(host: Host) -> dict[str, Any]:
    return {
        "node_id": host.id,
        "data_dir": data_dir("agent"),
        "coordinators": list(host.coordinators),
        "address": host.address,
        "port": AGENT_PORT,
        "triton": {"listen": host.address, "grpc_port": host.port},
    }


def _coordinator(host: Host) -> dict[str, Any]:
    etcd: dict[str, Any] = {"endpoints": list(host.etcd)}
    table: dict[str, Any] = {
        "id": host.id,
        "data_dir": data_dir("coordinator"),
        "host": host.address,
        "port": host.port,
        "etcd": {**etcd, **_tls("coordinator", "etcd-")} if host.tls else etcd,
    }
    if host.tls:
        table["auth"] = {"key_file": f"{tls_dir('coordinator')}/api-keys.pem"}
    if host.enroll:
        table["enroll_port"] = ENROLL_PORT
        table["auth"]["ca_key"] = f"{tls_dir('coordinator')}/ca.key"
    return table


def _gateway(host: Host) -> dict[str, Any]:
    table: dict[str, Any] = {
        "id": host.id,
        "data_dir": data_dir("gateway"),
        "host": host.address,
        "port": host.port,
        "coordinators": list(host.coordinators),
    }
    return {**table, "api_keys": f"{tls_dir('gateway')}/jwks.json"} if host.tls else table


def credentials(host: Host) -> tuple[str, ...]:
    """Names of the files that must be in the role's directory of certificates."""
    if not host.tls:
        return ()
    own = ["ca.pem", "cert.pem", "key.pem"]
    if host.role == "coordinator":
        own += ["etcd-ca.pem", "etcd-cert.pem", "etcd-key.pem", "api-keys.pem"]
    if host.role == "gateway":
        own.append("jwks.json")
    return (*own, "ca.key") if host.enroll else tuple(own)


_TABLES: dict[RoleName, Callable[[Host], dict[str, Any]]] = {
    "agent": _agent,
    "coordinator": _coordinator,
    "gateway": _gateway,
}


def _etcd_yaml(host: Host) -> str:
    """etcd's own configuration (etcd.io/docs/v3.5/op-guide/configuration). Every value is written as JSON, a part of
    YAML, so that none can be taken for something else."""
    scheme = "https" if host.tls else "http"
    client, peer = f"{scheme}://{_in_url(host.address)}:{host.port}", _peer_url(scheme, host.address)
    values: dict[str, Any] = {
        "name": host.id,
        "data-dir": data_dir("etcd"),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": ",".join(f"{name}={_peer_url(scheme, address)}" for name, address in host.cluster),
        "initial-cluster-token": "aimesh",
        "initial-cluster-state": "new",
        "quota-backend-bytes": 2 << 30,
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "experimental-initial-corrupt-check": True,
        "log-level": "warn",
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    if host.tls:
        for table in ("client-transport-security", "peer-transport-security"):
            lines += [f"{table}:", *(f"  {key}: {json.dumps(value)}" for key, value in _etcd_tls().items())]
    return "\n".join(lines) + "\n"


def _etcd_tls() -> dict[str, Any]:
    files = _tls("etcd")
    return {
        "trusted-ca-file": files["ca"],
        "cert-file": files["cert"],
        "key-file": files["key"],
        "client-cert-auth": True,
    }


def _peer_url(scheme: str, address: str) -> str:
    return f"{scheme}://{_in_url(address)}:{ETCD_PEER_PORT}"


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address

"""Writes config.example.toml from the settings classes: python -m tools.cli.example_config > config.example.toml."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, get_type_hints

from coordinator.settings import CoordinatorSettings
from meshkit.logs import LogSettings
from node_agent.settings import AgentSettings
from tools.gateway import GatewaySettings
from tools.local.layout import toml_value

TABLES: dict[str, type[Any]] = {
    "log": LogSettings,
    "coordinator": CoordinatorSettings,
    "agent": AgentSettings,
    "gateway": GatewaySettings,
}
"""Every table, with the class that it becomes."""

_HEAD = """\
# Every key of every table. One file may hold all of them; each process reads its own table and [log].
# A key that is commented out shows an example of a value that it does not have by itself; the others show their
# defaults, but for those marked "required". Each key can be given in the environment as well, which wins over this
# file: [agent.triton] grpc_port is AIMESH_AGENT_TRITON_GRPC_PORT, and lists are written with commas.
"""

_EXAMPLES: dict[str, Any] = {
    "coordinator.data_dir": "/var/lib/aimesh/coordinator",
    "coordinator.id": "coordinator-1",
    "coordinator.advertise": "10.0.0.1:8503",
    "coordinator.etcd.ca": "/etc/aimesh/etcd-ca.pem",
    "coordinator.etcd.cert": "/etc/aimesh/etcd-client.pem",
    "coordinator.etcd.key": "/etc/aimesh/etcd-client.key",
    "coordinator.auth.key_file": "/etc/aimesh/api-keys.pem",
    "coordinator.auth.ca_key": "/etc/aimesh/ca.key",
    "coordinator.scorers_dir": "/etc/aimesh/scorers",
    "agent.node_id": "node-1",
    "agent.data_dir": "/var/lib/aimesh/agent",
    "agent.labels": {"zone": "rack-7"},
    "agent.cpu_cores": 8.0,
    "agent.memory_bytes": 32 * 1024**3,
    "agent.runtimes_dir": "/opt/aimesh/runtimes",
    "agent.tls.ca": "/etc/aimesh/ca.pem",
    "agent.tls.cert": "/etc/aimesh/node.pem",
    "agent.tls.key": "/etc/aimesh/node.key",
    "agent.triton.external_address": "127.0.0.1:8001",
    "agent.triton.server": "/opt/tritonserver/bin/tritonserver",
    "agent.triton.backends_dir": "/opt/tritonserver/backends",
    "agent.training.python": "/opt/aimesh-training/bin/python",
    "gateway.data_dir": "/var/lib/aimesh/gateway",
    "gateway.coordinators": ["10.0.0.1:8503", "10.0.0.2:8503", "10.0.0.3:8503"],
    "gateway.id": "gateway-1",
    "gateway.envoy": "/usr/local/bin/envoy",
    "gateway.api_keys": "/etc/aimesh/jwks.json",
    **{f"{role}.tls.ca": f"/etc/aimesh/tls/{role}/ca.pem" for role in ("agent", "coordinator", "gateway")},
    **{f"{role}.tls.cert": f"/etc/aimesh/tls/{role}/cert.pem" for role in ("agent", "coordinator", "gateway")},
    **{f"{role}.tls.key": f"/etc/aimesh/tls/{role}/key.pem" for role in ("agent", "coordinator", "gateway")},
}
"""Values for keys without a default, and for those whose default belongs to a machine."""


def example_config() -> str:
    """The text of config.example.toml."""
    lines = [_HEAD.rstrip()]
    for name, kind in TABLES.items():
        lines += ["", *_table(name, kind)]
    return "\n".join(lines) + "\n"


def _table(name: str, kind: type[Any]) -> Iterator[str]:
    hints = get_type_hints(kind)
    nested = []
    yield f"[{name}]"
    for item in fields(kind):
        if isinstance(hints[item.name], type) and is_dataclass(hints[item.name]):
            nested.append((f"{name}.{item.name}", hints[item.name], item.metadata["doc"]))
        else:
            yield from _key(f"{name}.{item.name}", item)
    for path, inner, doc in nested:
        yield ""
        yield f"# {doc}"
        yield from _table(path, inner)


def _key(path: str, item: Field[Any]) -> Iterator[str]:
    required = item.default is MISSING and item.default_factory is MISSING
    example = path in _EXAMPLES
    if not required and not example and (item.default is None or item.default is MISSING):
        raise KeyError(f"{path} has no default that could be shown: give an example of it in _EXAMPLES")
    doc = item.metadata["doc"] + (" (required)" if required else "")
    yield from (f"# {line}" for line in wrap(doc, 117, break_long_words=False, break_on_hyphens=False))
    value = _EXAMPLES[path] if example else item.default
    text = f"{item.name} = {toml_value(str(value) if isinstance(value, Path) else value)}"
    yield f"# {text}" if example and not required else text


if __name__ == "__main__":
    sys.stdout.write(example_config())

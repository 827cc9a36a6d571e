"""The long-lived processes: `aimesh agent`, `coordinator` and `gateway`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration in TOML; config.example.toml documents every key. "
        "Each key may be given as AIMESH_<TABLE>_<KEY> in the environment, which wins.",
    ),
]

Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Listen on other addresses than loopback without TLS: for trusted networks only."),
]


def agent(config: Config = None, insecure: Insecure = False) -> None:
    """Run this machine's agent: it lends the machine to the mesh and serves models through Triton.

    Example: [bold]aimesh agent --config /etc/aimesh/agent.toml[/bold]
    """
    from node_agent.main import run
    from node_agent.settings import AgentSettings

    settings = _load(AgentSettings, "agent", config, insecure)
    _logs(config, "agent", node=settings.node_id)
    asyncio.run(run(settings))


def coordinator(config: Config = None, insecure: Insecure = False) -> None:
    """Run a coordinator: it keeps membership and state in etcd, places models and tells clients the routes.

    Example: [bold]aimesh coordinator --config /etc/aimesh/coordinator.toml[/bold]
    """
    from coordinator.main import run
    from coordinator.settings import CoordinatorSettings

    settings = _load(CoordinatorSettings, "coordinator", config, insecure)
    _logs(config, "coordinator", coordinator=settings.id)
    asyncio.run(run(settings))


def gateway(config: Config = None, insecure: Insecure = False) -> None:
    """Run a gateway: Envoy, configured by the coordinators. This process becomes Envoy.

    Example: [bold]aimesh gateway --config /etc/aimesh/gateway.toml[/bold]
    """
    from tools.gateway import GatewaySettings, run

    settings = _load(GatewaySettings, "gateway", config, insecure)
    _logs(config, "gateway")
    run(settings)


def _load(kind: type[Settings], table: str, config: Path | None, insecure: bool) -> Settings:
    from meshkit.settings import load_settings

    settings = load_settings(kind, table, config)
    return replace(settings, insecure=True) if insecure else settings


def _logs(config: Path | None, component: str, **always: str) -> None:
    from meshkit.logs import LogSettings, configure_logs
    from meshkit.settings import load_settings

    configure_logs(load_settings(LogSettings, "log", config), component=component, **always)

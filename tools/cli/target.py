"""Which mesh a command talks to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshkit.credentials import ClientCredentials
from meshkit.errors import UnavailableError
from tools.local.record import MeshRecord, default_state_dir, read_record


@dataclass(frozen=True)
class Mesh:
    """A mesh that commands can reach."""

    coordinators: tuple[str, ...]
    """host:port of each coordinator."""
    gateway: str
    """host:port of the gateway; empty when a remote mesh was named without one."""
    state_dir: Path | None
    """Where it is kept on this machine; None for a remote mesh."""
    record: MeshRecord | None
    """What runs on this machine; None for a remote mesh."""
    credentials: ClientCredentials = field(default_factory=ClientCredentials)
    """What is shown to it."""


def find_mesh(state_dir: Path | None, environ: Mapping[str, str] | None = None) -> Mesh:
    """The mesh named by --state-dir or $AIMESH_STATE_DIR, else by $AIMESH_COORDINATORS, else the default one.

    What is shown to it is named by --tls-dir, $AIMESH_TLS_... and $AIMESH_API_KEY; a mesh of this machine that uses TLS
    keeps an administrator's. Raises UnavailableError when none runs there.
    """
    environ = os.environ if environ is None else environ
    shown = ClientCredentials.from_environment(environ)
    local = (state_dir or default_state_dir(environ)).absolute()
    record = read_record(local)
    named = state_dir is not None or environ.get("AIMESH_STATE_DIR")
    if not named and (listed := environ.get("AIMESH_COORDINATORS", "")):
        coordinators = tuple(part.strip() for part in listed.split(",") if part.strip())
        return Mesh(coordinators, environ.get("AIMESH_GATEWAY", ""), None, None, shown)
    if record is None or not record.running:
        flag = f" --state-dir {local}" if state_dir else ""
        raise UnavailableError(
            f"no mesh runs in {local}", hint=f"start one: aimesh up --detach{flag}", reason="MESH_NOT_RUNNING"
        )
    own = record.layout.client_tls_dir
    if own is not None and shown.ca is None:
        kept = ClientCredentials.from_directory(own)
        shown = replace(kept, api_key=shown.api_key or kept.api_key)
    return Mesh(record.layout.coordinators, record.layout.gateway, local, record, shown)


def require_gateway(mesh: Mesh) -> str:
    """The gateway's host:port. Raises UnavailableError when a remote mesh was named without one."""
    if not mesh.gateway:
        raise UnavailableError(
            "no gateway is known for this mesh", hint="set AIMESH_GATEWAY=host:port", reason="GATEWAY_UNKNOWN"
        )
    return mesh.gateway

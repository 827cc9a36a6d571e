"""The exports of `aimesh env`."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from tools.cli.target import Mesh
from tools.local.xds import write_bootstrap


def export_lines(mesh: Mesh) -> list[str]:
    """`export KEY=value` lines, quoted for a shell. Writes the xDS bootstrap when the mesh has none here yet."""
    values = {"AIMESH_COORDINATORS": ",".join(mesh.coordinators), "AIMESH_GATEWAY": mesh.gateway}
    if mesh.record is not None:
        values = {"AIMESH_STATE_DIR": str(mesh.state_dir), **values}
        bootstrap, tls_dir = mesh.record.layout.xds_bootstrap, mesh.record.layout.client_tls_dir
        values |= {"AIMESH_TLS_DIR": str(tls_dir), "AIMESH_API_KEY": mesh.credentials.api_key} if tls_dir else {}
    else:
        bootstrap = remote_bootstrap(mesh.coordinators)
    if not bootstrap.exists() or mesh.record is None:
        write_bootstrap(mesh.coordinators, bootstrap, mesh.credentials)
    values["GRPC_XDS_BOOTSTRAP"] = str(bootstrap)
    return [f"export {key}={shlex.quote(value)}" for key, value in values.items() if value]


def remote_bootstrap(coordinators: tuple[str, ...]) -> Path:
    """Where the bootstrap for a mesh elsewhere is kept: one file for each set of coordinators."""
    name = hashlib.sha256(",".join(coordinators).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "aimesh" / f"xds_{name}.json"

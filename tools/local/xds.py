"""The file that lets any gRPC program find the mesh."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from coordinator.xds.bootstrap import client_bootstrap


def write_bootstrap(coordinators: tuple[str, ...], path: Path) -> None:
    """Writes gRPC's xDS bootstrap, for GRPC_XDS_BOOTSTRAP to name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(client_bootstrap(coordinators, socket.gethostname()), indent=2) + "\n")

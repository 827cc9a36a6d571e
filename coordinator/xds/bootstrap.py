"""What a gRPC program needs to know to find the mesh: the content of the file that GRPC_XDS_BOOTSTRAP names."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from meshkit.tls import TlsSettings

CERTIFICATE_PROVIDER = "aimesh"
"""What clusters call the program's own certificate and the authority's, which the bootstrap says where to find."""
_REFRESH = "10s"


def client_bootstrap(coordinators: Sequence[str], node_id: str, tls: TlsSettings | None = None) -> dict[str, Any]:
    """The bootstrap document for coordinators at host:port (at least one); `node_id` names the program in status.

    Coordinators are equals. Given as one target with several addresses (pick_first, gRFC A61), a client that loses one
    takes the next. As a list of servers it would hold on to the first for as long as it has resources cached (gRFC
    A71), and miss changes; that is left for host names, which a target with several addresses cannot carry, and for
    TLS, which holds the server's certificate against the target as a whole. There, one host name with an address a
    coordinator is best.
    """
    secure = tls is not None and tls.on
    document: dict[str, Any] = {
        "xds_servers": [_server(uri, tls if secure else None) for uri in _server_uris(coordinators, secure=secure)],
        "node": {"id": node_id, "locality": {}},  # Node.js refuses a node without a locality
    }
    if tls is not None and secure:
        provider = {"plugin_name": "file_watcher", "config": _files(tls)}
        document["certificate_providers"] = {CERTIFICATE_PROVIDER: provider}
    return document


def _server(uri: str, tls: TlsSettings | None) -> dict[str, Any]:
    credentials = {"type": "tls", "config": _files(tls)} if tls else {"type": "insecure"}
    return {"server_uri": uri, "channel_creds": [credentials], "server_features": ["xds_v3"]}


def _files(tls: TlsSettings) -> dict[str, str]:
    """What gRPC reads, and reads again when it has changed (gRFCs A29 and A65)."""
    return {
        "ca_certificate_file": str(tls.ca),
        "certificate_file": str(tls.cert),
        "private_key_file": str(tls.key),
        "refresh_interval": _REFRESH,
    }


def _server_uris(coordinators: Sequence[str], *, secure: bool) -> list[str]:
    hosts = [_ip(address) for address in coordinators]
    if None in hosts:
        return [f"dns:///{address}" for address in coordinators]
    if all(isinstance(host, ipaddress.IPv4Address) for host in hosts):
        scheme, targets = "ipv4", list(coordinators)
    else:
        scheme, targets = "ipv6", [_as_ipv6(address) for address in coordinators]
    return [f"{scheme}:{target}" for target in targets] if secure else [f"{scheme}:{','.join(targets)}"]


def _as_ipv6(address: str) -> str:
    """As a target of IPv6 addresses wants it, IPv4 ones mapped (RFC 4291, 2.5.5.2): a target is of one family."""
    host, _, port = address.rpartition(":")
    return address if ":" in host else f"[::ffff:{host}]:{port}"


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a host name, and for an address of one link only (fe80::1%eth0), which targets do not carry."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None

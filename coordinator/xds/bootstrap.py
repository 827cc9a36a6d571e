"""What a gRPC program needs to know to find the mesh: the content of the file that GRPC_XDS_BOOTSTRAP names."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any


def client_bootstrap(coordinators: Sequence[str], node_id: str) -> dict[str, Any]:
    """The bootstrap document for coordinators at host:port (at least one); `node_id` names the program in status.

    Coordinators are equals. Given as one target with several addresses, a client that loses one takes the next. As a
    list of servers it would hold on to the first for as long as it has resources cached (gRFC A71), and miss changes;
    that is left for host names, which a target with several addresses cannot carry.
    """
    return {
        "xds_servers": [_server(uri) for uri in _server_uris(coordinators)],
        "node": {"id": node_id, "locality": {}},  # Node.js refuses a node without a locality
    }


def _server(uri: str) -> dict[str, Any]:
    return {"server_uri": uri, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}


def _server_uris(coordinators: Sequence[str]) -> list[str]:
    if all(_is_ipv4(address) for address in coordinators):
        return [f"ipv4:{','.join(coordinators)}"]
    return [f"dns:///{address}" for address in coordinators]


def _is_ipv4(address: str) -> bool:
    try:
        ipaddress.IPv4Address(address.rpartition(":")[0])
    except ValueError:
        return False
    return True

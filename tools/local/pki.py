"""The certificates of a one-machine mesh: an authority of its own, and one for each process and for people."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import grpc.aio

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc, scope_pb2
from coordinator.identity.signing import create_key_file
from meshkit.certificates import make_names
from meshkit.credentials import API_KEY, ClientCredentials
from meshkit.files import SECRET, write_atomically
from meshkit.grpc_errors import from_call
from meshkit.tls import Identity, Role
from tools.certificates import API_KEYS, CA_KEY, create_authority, issue
from tools.local.layout import ADMIN, Layout

_LIFETIME = timedelta(days=90)
_TIMEOUT_S = 10.0


def prepare_identity(layout: Layout) -> None:
    """Makes the key that signs API keys and, with TLS, the authority and a new certificate for every process."""
    if not layout.tls:
        create_key_file(layout.tls_dir / API_KEYS)
        return
    if not (layout.tls_dir / CA_KEY).exists():
        create_authority(layout.tls_dir)
    for name, identity in _holders(layout).items():
        names = make_names(identity, ("127.0.0.1",), ("localhost",))
        issue(layout.tls_dir, names, _LIFETIME, layout.tls_dir / name)


def own_credentials(layout: Layout) -> ClientCredentials:
    """What this machine's people and programs show to the mesh."""
    folder = layout.client_tls_dir
    return ClientCredentials.from_directory(folder) if folder else ClientCredentials()


async def ensure_api_key(layout: Layout) -> None:
    """Makes the API key that the gateway asks the command line for, once. Raises what the coordinator answers."""
    folder = layout.client_tls_dir
    if folder is None or (folder / API_KEY).exists():
        return
    async with own_credentials(layout).coordinator_channel(layout.coordinators[0]) as channel:
        stub: Any = identity_pb2_grpc.IdentityServiceStub(channel)
        # Another with the same name is left from a start that was cut off before the key was on disk.
        request = identity_pb2.CreateKeyRequest(name=f"local-{secrets.token_hex(4)}", scopes=[scope_pb2.SCOPE_INFER])
        try:
            made = await stub.CreateKey(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None
    write_atomically(folder / API_KEY, made.secret.encode(), SECRET)


def _holders(layout: Layout) -> dict[str, Identity]:
    """Who gets a certificate, by the directory that it lies in."""
    numbered: list[tuple[Role, tuple[str, ...]]] = [
        ("etcd", layout.etcd_names),
        ("coordinator", layout.coordinator_names),
    ]
    found = {
        name: Identity(role, f"{role}-{number}") for role, names in numbered for number, name in enumerate(names, 1)
    }
    found |= {layout.node_id(index): Identity("node", layout.node_id(index)) for index in range(layout.nodes)}
    return found | {"gateway": Identity("gateway", "gateway"), ADMIN: Identity("admin", ADMIN)}

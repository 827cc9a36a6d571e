"""Calls of `aimesh trust`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from meshkit.signing import sign, verify
from meshkit.versions import check_digest
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.registry import get_version, list_versions, registry_service
from tools.cli.target import Mesh

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


async def change_trust(mesh: Mesh, change: Callable[[registry_pb2.Trust], None] | None) -> registry_pb2.Trust:
    """Whose signatures count, after `change` has changed it; as it is without one."""
    async with registry_service(mesh) as registry:
        trust = (await registry.GetTrust(registry_pb2.GetTrustRequest(), timeout=CALL_TIMEOUT_S)).trust
        if change is None:
            return trust
        request = registry_pb2.SetTrustRequest(trust=trust, replaces=trust)
        change(request.trust)
        return (await registry.SetTrust(request, timeout=CALL_TIMEOUT_S)).trust


async def sign_version(mesh: Mesh, name: str, version: str, key: Ed25519PrivateKey) -> registry_pb2.ModelVersion:
    """Signs what is recorded. Raises DataLossError when that is not what its digest says."""
    held = await get_version(mesh, name, version)
    check_digest(held)
    request = registry_pb2.SignVersionRequest(name=name, version=version, signature=sign(held, key))
    async with registry_service(mesh) as registry:
        return (await registry.SignVersion(request, timeout=CALL_TIMEOUT_S)).version


async def unsigned_deployed(mesh: Mesh, trust: registry_pb2.Trust) -> list[str]:
    """NAME:VERSION of what deployments name and no trusted key signed."""
    versions = {(each.name, each.version): each for each in await list_versions(mesh)}
    found: list[str] = []
    request = routing_pb2.ListDeploymentsRequest(page_size=1000)
    async with connect(mesh, "coordinator") as channel:
        routing = routing_pb2_grpc.RoutingServiceStub(channel)
        while True:
            page = await routing.ListDeployments(request, timeout=CALL_TIMEOUT_S)
            used = [(each.deployment.name, target.version) for each in page.deployments for target in each.targets]
            found += [":".join(key) for key in used if key in versions and not verify(versions[key], trust).signer]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

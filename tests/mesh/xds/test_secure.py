"""A mesh with TLS: stock clients, real Tritons, a real Envoy, each with a certificate, and API keys at the gateway."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2_grpc

from aimesh.identity.v1 import identity_pb2, scope_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.identity.signing import Signer
from coordinator.state import State
from coordinator.xds.gateway_routes import GATEWAY_ROUTES
from coordinator.xds.snapshot import RDS
from meshkit.tls import Role, TlsSettings, channel_credentials
from tests.certificates import TestAuthority
from tests.mesh.xds import harness
from tests.mesh.xds.clients import add_one, one_input, own_xds, refusal
from tests.mesh.xds.harness import Coordinator
from tests.mesh.xds.triton import RunningTriton, tritons

READY = membership_pb2.MODEL_STATE_READY


@dataclass(frozen=True)
class SecureMesh:
    folder: Path
    authority: TestAuthority
    signer: Signer
    coordinator: Coordinator
    triton: RunningTriton
    gateway: str

    def state(self, revision: int, *keys: str) -> State:
        """One replica, and live keys with these ids."""
        node = harness.node(0, self.triton, {"addone": READY})
        state = harness.state_of(
            revision, [node], [harness.deployment("addone", 1)], coordinators=[self.coordinator.address]
        )
        scopes = [scope_pb2.SCOPE_INFER]
        return replace(state, api_keys={key: identity_pb2.ApiKey(id=key, scopes=scopes) for key in keys})

    def key(self, key_id: str) -> dict[str, str]:
        """Headers with an API key's text."""
        return {"authorization": f"Bearer {self.signer.sign({'jti': key_id, 'sub': 'tests'})}"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    folder = tmp_path_factory.mktemp("secure")
    authority, signer = TestAuthority(folder / "pki"), Signer(Ed25519PrivateKey.generate())
    jwks = folder / "jwks.json"
    jwks.write_text(signer.jwks())
    (folder / "triton").mkdir()
    with (
        harness.coordinator(tls=authority.issue("coordinator", "c0")) as coordinator,
        tritons(folder / "triton", 1, tls=authority.issue("node", "agent-0")) as (triton,),
    ):
        coordinator.publish(harness.state_of(1, [], []))
        tls = authority.issue("gateway", "g0")
        with harness.envoy(folder, [coordinator.address], tls=tls, api_keys=jwks) as gateway:
            yield SecureMesh(folder, authority, signer, coordinator, triton, gateway)


@pytest.fixture
def gateway_client(mesh: SecureMesh) -> Iterator[Any]:
    """A stock client that knows the authority and has no certificate."""
    client = tritonclient.grpc.InferenceServerClient(mesh.gateway, ssl=True, root_certificates=str(mesh.authority.ca))
    yield client
    client.close()


def test_a_program_with_a_certificate_calls_triton_directly(mesh: SecureMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.coordinator.publish(mesh.state(10))
    with _proxyless(mesh, mesh.authority.issue("client", "program"), monkeypatch) as client:
        add_one(client, client_timeout=10)


def test_fallbacks_and_mirrors_are_reached_with_tls_under_their_own_names(
    mesh: SecureMesh, gateway_client: Any
) -> None:
    """Their clusters run a filter of their own before the link that is encrypted."""
    (mesh.folder / "backup").mkdir()
    with tritons(mesh.folder / "backup", 1, ("backup",), tls=mesh.authority.issue("node", "agent-1")) as (backup,):
        first, other = harness.node(0, mesh.triton, {"addone": READY}), harness.node(1, backup, {"backup": READY})
        policy = routing_pb2.RoutePolicy(
            fallbacks=["backup"], mirror=routing_pb2.Mirror(deployment="backup", percent=100)
        )
        addone = harness.deployment("addone", 1)
        addone.policy.CopyFrom(policy)
        deployments = [addone, harness.deployment("backup", 1)]
        keys = mesh.state(15, "k1").api_keys
        mesh.coordinator.publish(replace(harness.state_of(15, [first, other], deployments), api_keys=keys))
        headers = mesh.key("k1")

        def answered_by() -> str:
            answer = gateway_client.infer("addone", one_input(), headers=headers, client_timeout=10)
            return str(answer.get_response().model_name)

        def copied() -> int:
            found = gateway_client.get_inference_statistics("backup", headers=headers)
            return int(found.model_stats[0].inference_count)

        harness.eventually(lambda: _answers(gateway_client, headers), "the key is known")
        assert answered_by() == "addone"
        harness.eventually(lambda: copied() >= 1, "a copy arrived")
        mesh.coordinator.publish(replace(harness.state_of(16, [other], deployments), api_keys=keys))
        harness.eventually(lambda: answered_by() == "backup", "the fallback answers")


def test_a_server_that_is_no_node_is_not_believed(mesh: SecureMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took over a node's address with another certificate of the mesh gets no request."""
    (mesh.folder / "impostor").mkdir()
    with tritons(mesh.folder / "impostor", 1, tls=mesh.authority.issue("gateway", "g9")) as (impostor,):
        deployed = harness.deployment("addone", 1)
        state = harness.state_of(20, [harness.node(0, impostor, {"addone": READY})], [deployed])
        mesh.coordinator.publish(replace(state, api_keys=mesh.state(20, "k1").api_keys))
        with _proxyless(mesh, mesh.authority.issue("client", "program"), monkeypatch) as client:
            code, message = refusal(lambda: client.infer("addone", one_input(), client_timeout=10))
            assert (code, "SANs" in message) == ("UNAVAILABLE", True), message


def test_the_gateway_takes_live_keys_only(mesh: SecureMesh, gateway_client: Any) -> None:
    mesh.coordinator.publish(mesh.state(30, "k1"))
    harness.eventually(lambda: _answers(gateway_client, mesh.key("k1")), "the key is known")
    code, message = refusal(lambda: gateway_client.infer("addone", one_input()))
    assert (code, "aimesh keys create" in message) == ("UNAUTHENTICATED", True), message
    assert (
        refusal(lambda: gateway_client.infer("addone", one_input(), headers=mesh.key("k2")))[0] == "PERMISSION_DENIED"
    )
    forged = Signer(Ed25519PrivateKey.generate()).sign({"jti": "k1", "sub": "tests"})
    headers = {"authorization": f"Bearer {forged}"}
    assert refusal(lambda: gateway_client.infer("addone", one_input(), headers=headers))[0] == "UNAUTHENTICATED"


def test_a_revoked_key_ends_at_the_gateway(mesh: SecureMesh, gateway_client: Any) -> None:
    mesh.coordinator.publish(mesh.state(40, "k1"))
    harness.eventually(lambda: _answers(gateway_client, mesh.key("k1")), "the key is known")
    mesh.coordinator.publish(mesh.state(41))
    harness.eventually(lambda: not _answers(gateway_client, mesh.key("k1")), "it is revoked", patience_s=1.0)


def test_the_gateway_takes_a_renewed_certificate_without_a_restart(mesh: SecureMesh) -> None:
    before = _served_certificate(mesh.gateway)
    mesh.authority.issue("gateway", "g0")
    replaced = mesh.folder / "pki" / "gateway-g0.crt"
    replaced.rename(replaced.with_suffix(".new"))
    replaced.with_suffix(".new").rename(replaced)  # as whoever writes atomically does: Envoy watches for the rename
    harness.eventually(lambda: _served_certificate(mesh.gateway) != before, "Envoy shows the new certificate")


@pytest.mark.parametrize(("role", "given"), [("gateway", GATEWAY_ROUTES), ("node", "addone"), ("admin", "addone")])
def test_only_gateways_get_the_gateways_routes(mesh: SecureMesh, role: Role, given: str) -> None:
    """They tell the ids of live keys, and any program can say that it is Envoy."""
    mesh.coordinator.publish(mesh.state(50, "k1"))
    credentials = channel_credentials(mesh.authority.issue(role, "other"))
    assert credentials is not None
    asked = discovery_pb2.DiscoveryRequest(type_url=RDS, resource_names=[GATEWAY_ROUTES, "addone"])
    asked.node.user_agent_name = "envoy"
    with grpc.secure_channel(mesh.coordinator.address, credentials) as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        (routes,) = next(stub.StreamAggregatedResources(iter([asked]), timeout=15)).resources
    assert route_pb2.RouteConfiguration.FromString(routes.value).name == given
    assert (b"k1" in routes.value) == (role == "gateway")


def test_the_gateway_reports_what_callers_saw(mesh: SecureMesh, gateway_client: Any) -> None:
    mesh.coordinator.publish(mesh.state(60, "k1"))
    key, loads = ("addone", harness.VERSION), mesh.coordinator.loads
    mesh.coordinator.call(loads.ask, frozenset({key}))
    harness.eventually(lambda: _answers(gateway_client, mesh.key("k1")), "the key is known")
    harness.eventually(lambda: mesh.coordinator.call(loads.gateway_counts)[key].requests >= 1, "it was reported")


@pytest.mark.parametrize("role", ["node", "client", "admin"])
def test_nobody_but_gateways_does(mesh: SecureMesh, role: Role) -> None:
    credentials = channel_credentials(mesh.authority.issue(role, "other"))
    assert credentials is not None
    with grpc.secure_channel(mesh.coordinator.address, credentials) as channel:
        call = lrs_pb2_grpc.LoadReportingServiceStub(channel).StreamLoadStats(iter([]), timeout=15)
        with pytest.raises(grpc.RpcError) as refused:
            next(call)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


def _answers(client: Any, headers: dict[str, str]) -> bool:
    try:
        add_one(client, client_timeout=5, headers=headers)
    except tritonclient.utils.InferenceServerException:
        return False
    return True


def _served_certificate(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


def _proxyless(mesh: SecureMesh, tls: TlsSettings, patch: pytest.MonkeyPatch) -> Any:
    bootstrap = harness.write_client_bootstrap(mesh.folder / "client.json", [mesh.coordinator.address], tls)
    patch.setitem(os.environ, "GRPC_XDS_BOOTSTRAP", str(bootstrap))
    credentials = grpc.xds_channel_credentials()
    target = "xds:///addone"
    return tritonclient.grpc.InferenceServerClient(target, creds=credentials, channel_args=own_xds(target))

"""`aimesh up --tls`: mTLS on every link, API keys at the gateway, and the command line works as ever."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import subprocess
import sys
from http import HTTPStatus
from typing import Any

import grpc
import grpc.aio
import pytest
import tritonclient.grpc

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc, scope_pb2
from meshkit.credentials import ClientCredentials
from tests.mesh.tools.meshes import Aimesh, until

_PROXYLESS = """
import grpc, numpy, tritonclient.grpc as triton
client = triton.InferenceServerClient("xds:///adder", creds=grpc.xds_channel_credentials())
x = triton.InferInput("x", [2], "FP32")
x.set_data_from_numpy(numpy.array([1, 2], dtype=numpy.float32))
print(client.infer("adder", [x], client_timeout=20).as_numpy("y").tolist())
try:
    client.unload_model("adder")
except triton.InferenceServerException as error:
    print(error.message())
"""


@pytest.fixture
def secure(mesh: Aimesh) -> Aimesh:
    """A mesh with TLS that serves x + 1."""
    mesh.run("up", "--detach", "--tls")
    mesh.add_model()
    mesh.run("deploy", "adder")
    return mesh


async def test_a_mesh_with_tls(secure: Aimesh) -> None:
    _people_and_programs(secure)
    await _strangers(secure)
    _keys(secure)
    await _from_where(secure)
    audit = secure.json("audit", "verify")
    assert audit["events"] >= 3, audit


def _people_and_programs(mesh: Aimesh) -> None:
    """Those of this machine have an administrator's certificate, and programs one for Triton."""
    assert mesh.adds()
    exported = dict(line.removeprefix("export ").split("=", 1) for line in mesh.run("env").stdout.splitlines())
    environ = {**os.environ, "GRPC_XDS_BOOTSTRAP": exported["GRPC_XDS_BOOTSTRAP"].strip("'")}
    program = [sys.executable, "-c", _PROXYLESS]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=60, check=False)
    answer, refusal = done.stdout.splitlines()
    assert answer == "[2.0, 3.0]", done.stderr
    assert "restricted" in refusal  # only the agent loads and unloads


async def _strangers(mesh: Aimesh) -> None:
    """Nobody gets in without a certificate, in plain text or with TLS alone."""
    (coordinator,) = mesh.record.layout.coordinators
    authority = (mesh.record.layout.tls_dir / "ca.pem").read_bytes()
    for channel in (
        grpc.aio.insecure_channel(coordinator),
        grpc.aio.secure_channel(coordinator, grpc.ssl_channel_credentials(authority)),
    ):
        async with channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=5)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def _keys(mesh: Aimesh) -> None:
    """A key opens the gateway, and no longer once it is revoked."""
    key = mesh.run("keys", "create", "bob", "--scope", "infer").stdout.splitlines()[0].strip()
    authority = str(mesh.record.layout.tls_dir / "ca.pem")
    client = tritonclient.grpc.InferenceServerClient(mesh.record.layout.gateway, ssl=True, root_certificates=authority)
    headers = {"authorization": f"Bearer {key}"}
    until(lambda: _opens(client, headers))
    assert _status(mesh, f"/v2?access_token={key}") == HTTPStatus.UNAUTHORIZED, "the query is logged"
    mesh.run("keys", "revoke", "bob")
    until(lambda: not _opens(client, headers), within_s=5.0)
    client.close()


def _status(mesh: Aimesh, path: str) -> int:
    context = ssl.create_default_context(cafile=mesh.record.layout.tls_dir / "ca.pem")
    with contextlib.closing(http.client.HTTPSConnection(mesh.record.layout.gateway, context=context)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


async def _from_where(mesh: Aimesh) -> None:
    """The audit log has the address of whoever calls through the gateway, not the one that it says."""
    key = mesh.run("keys", "create", "eve", "--scope", "admin").stdout.splitlines()[0].strip()
    seen_by = ClientCredentials(ca=mesh.record.layout.tls_dir / "ca.pem", api_key=key)
    async with seen_by.gateway_channel(mesh.record.layout.gateway) as channel:
        stub: Any = identity_pb2_grpc.IdentityServiceStub(channel)
        request = identity_pb2.CreateKeyRequest(name="made-by-eve", scopes=[scope_pb2.SCOPE_READ])
        await stub.CreateKey(request, timeout=15, metadata=(("x-forwarded-for", "192.0.2.66"),))
    (event,) = mesh.json("audit", "list", "--actor", "key:eve")
    assert "192.0.2.66" not in event["peer"]
    assert event["peer"].endswith("through gateway gateway")


def _opens(client: tritonclient.grpc.InferenceServerClient, headers: dict[str, str]) -> bool:
    try:
        return bool(client.is_model_ready("adder", headers=headers, client_timeout=5))
    except tritonclient.utils.InferenceServerException:
        return False

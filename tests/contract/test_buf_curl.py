"""`buf curl`, which like grpcurl knows a service by reflection alone."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.contract.conftest import REPOSITORY, Mesh, require_node


@pytest.fixture(params=["gateway", "coordinator"])
def address(mesh: Mesh, request: pytest.FixtureRequest) -> str:
    return mesh.gateway if request.param == "gateway" else mesh.coordinator


def _buf_curl(*arguments: str) -> str:
    require_node()
    buf = REPOSITORY / "node_modules" / ".bin" / "buf"
    command = [str(buf), "curl", "--http2-prior-knowledge", "--protocol", "grpc", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_services_are_listed(address: str) -> None:
    services = _buf_curl("--list-services", f"http://{address}").split()
    assert {
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
    } <= set(services)


def test_a_call_by_reflection(address: str) -> None:
    answer = _buf_curl("--data", "{}", f"http://{address}/grpc.health.v1.Health/Check")
    assert json.loads(answer) == {"status": "SERVING"}

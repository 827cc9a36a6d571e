"""kill -9 of a node's Triton under load: no request is lost, whichever way it came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aimesh.membership.v1 import membership_pb2
from tests.mesh.xds import harness
from tests.mesh.xds.clients import add_one, load, triton_client
from tests.mesh.xds.conftest import XdsMesh
from tests.mesh.xds.triton import RunningTriton, another_triton

READY = membership_pb2.MODEL_STATE_READY


@pytest.fixture
def victim(mesh: XdsMesh, tmp_path: Path) -> Iterator[RunningTriton]:
    """One more Triton, which the test may kill, beside the module's first."""
    with another_triton(mesh.folder / "triton") as running:
        yield running


@pytest.mark.parametrize("way", ["xds", "gateway"])
async def test_no_request_is_lost(mesh: XdsMesh, victim: RunningTriton, way: str) -> None:
    survivor = harness.node(1, mesh.tritons[0], {"addone": READY})
    both = [survivor, harness.node(2, victim, {"addone": READY})]
    mesh.coordinator.publish(harness.state_of(1, both, [harness.deployment("addone")]))
    target = "xds:///addone" if way == "xds" else mesh.gateway
    with triton_client(mesh.gateway) as client:
        harness.eventually(lambda: harness.get(f"http://{mesh.gateway}/v2/models/addone")[0] == 200, "it is routed")
        add_one(client)
    result = await load(target, 2.4, victim.kill)
    mesh.coordinator.publish(harness.state_of(2, [survivor], [harness.deployment("addone")]))
    assert result.errors == []
    assert result.answers > 100
    assert result.worst_s < 1

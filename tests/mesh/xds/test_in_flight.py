"""Calls in flight when the configuration changes, and the bound that a deployment puts on its calls."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from tests.mesh.xds import harness
from tests.mesh.xds.clients import own_xds
from tests.mesh.xds.conftest import XdsMesh

READY = membership_pb2.MODEL_STATE_READY
_revisions = itertools.count(1)


@pytest.fixture(params=["xds", "gateway", "gateway by header"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _state(mesh: XdsMesh, serving: int | None, deployment: routing_pb2.Deployment | None = None) -> State:
    nodes = [] if serving is None else [harness.node(serving, mesh.tritons[serving], {"addone": READY})]
    return harness.state_of(next(_revisions), nodes, [deployment or harness.deployment("addone", replicas=1)])


async def _infer(mesh: XdsMesh, way: str, *values: float) -> list[float]:
    module = tritonclient.grpc.aio
    tensor = module.InferInput("INPUT0", [len(values)], "FP32")
    tensor.set_data_from_numpy(np.array(values, np.float32))
    target, headers = _target(mesh, way)
    async with module.InferenceServerClient(target, channel_args=own_xds(target)) as client:
        answer: Any = await client.infer("addone", [tensor], headers=headers, client_timeout=20)
        found: list[float] = answer.as_numpy("OUTPUT0").tolist()
        return found


def _target(mesh: XdsMesh, way: str) -> tuple[str, dict[str, str] | None]:
    """(target, headers)."""
    return (
        "xds:///addone" if way == "xds" else mesh.gateway,
        {"x-aimesh-model": "addone"} if way == "gateway by header" else None,
    )


async def _publish_and_wait(mesh: XdsMesh, way: str, state: State, *, works: bool) -> None:
    """Publishes; returns when new calls meet it."""
    await asyncio.to_thread(mesh.coordinator.publish, state)
    async with asyncio.timeout(15):
        while await _works(mesh, way) != works:  # noqa: ASYNC110  # it happens in another process
            await asyncio.sleep(0.02)


async def _works(mesh: XdsMesh, way: str) -> bool:
    target, headers = _target(mesh, way)
    try:
        async with tritonclient.grpc.aio.InferenceServerClient(target, channel_args=own_xds(target)) as client:
            return bool(await client.is_model_ready("addone", headers=headers))
    except InferenceServerException:
        return False


async def test_a_call_in_flight_ends_well_when_its_node_leaves(mesh: XdsMesh, way: str) -> None:
    await _publish_and_wait(mesh, way, _state(mesh, 0), works=True)
    call = await _begin(mesh, way)
    await _publish_and_wait(mesh, way, _state(mesh, 1), works=True)
    await _publish_and_wait(mesh, way, _state(mesh, None), works=False)
    assert not call.done(), "the change took longer than the call"
    assert await call == [0]


async def test_a_call_in_flight_ends_well_when_its_deployment_goes(mesh: XdsMesh, way: str) -> None:
    await _publish_and_wait(mesh, way, _state(mesh, 0), works=True)
    call = await _begin(mesh, way)
    await _publish_and_wait(mesh, way, harness.state_of(next(_revisions), [], []), works=False)
    assert not call.done(), "the change took longer than the call"
    assert await call == [0]


async def test_a_deployments_timeout_ends_its_calls(mesh: XdsMesh, way: str) -> None:
    bounded = harness.deployment("addone", replicas=1)
    bounded.policy.timeout.FromMilliseconds(300)
    await _publish_and_wait(mesh, way, _state(mesh, None), works=False)
    await _publish_and_wait(mesh, way, _state(mesh, 0, bounded), works=True)
    with pytest.raises(InferenceServerException) as failed:
        await _infer(mesh, way, -3.0)
    assert failed.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def _begin(mesh: XdsMesh, way: str) -> asyncio.Task[list[float]]:
    """A call of a second that its replica has begun."""
    sleeping = mesh.folder / "triton" / "models" / "addone" / "1" / "sleeping"
    sleeping.unlink(missing_ok=True)
    call = asyncio.create_task(_infer(mesh, way, -1.0))
    async with asyncio.timeout(10):
        while not sleeping.exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.01)
    return call

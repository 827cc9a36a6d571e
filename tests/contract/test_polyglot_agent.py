"""A node agent in another language, written from membership.proto alone: the mesh treats it as any other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio

from meshkit.process import ProcessId
from tests.contract.conftest import REPOSITORY, Mesh, require_node
from tests.mesh.tools.meshes import Aimesh
from tests.processes import eventually, process

NODE = "nodejs-1"
MODEL = "polyglot"


@pytest.fixture
def aimesh(mesh: Mesh) -> Aimesh:
    return Aimesh(mesh.xds_bootstrap.parent)


@pytest.fixture
def agent(mesh: Mesh, aimesh: Aimesh, tmp_path: Path) -> Iterator[ProcessId]:
    """The agent in Node.js. Its node and its model are gone from the shared mesh afterwards."""
    script = REPOSITORY / "tests" / "contract" / "node_agent_js" / "agent.js"
    argv = [require_node(), str(script), str(REPOSITORY / "proto"), NODE, mesh.coordinator]
    with process(argv, tmp_path / "agent.log") as started:
        yield started
    aimesh.try_run("undeploy", MODEL)


def node_of(aimesh: Aimesh) -> dict[str, Any] | None:
    nodes = aimesh.json("status")["nodes"]
    return next((node for node in nodes if node["id"] == NODE), None)


def state_of(aimesh: Aimesh) -> str | None:
    node = node_of(aimesh)
    return node["state"] if node else None


def answered_here(aimesh: Aimesh) -> int:
    """Requests that the agent counts in its heartbeats."""
    node = node_of(aimesh)
    assert node is not None
    return sum(int(model.get("successes", 0)) for model in node.get("load", {}).get("models", []))


async def ask(target: str, times: int) -> None:
    """Each request must be answered, and rightly, whoever answers it."""
    client = tritonclient.grpc.aio.InferenceServerClient(target)
    tensor = tritonclient.grpc.aio.InferInput("INPUT0", [3], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2.5, -4], np.float32))
    try:
        for _ in range(times):
            answer = await client.infer(MODEL, [tensor], client_timeout=20)
            assert answer.as_numpy("OUTPUT0").tolist() == [2, 3.5, -3]
    finally:
        await client.close()


@pytest.mark.timeout(300)
async def test_it_joins_serves_and_dies_as_any_other(mesh: Mesh, aimesh: Aimesh, agent: ProcessId) -> None:
    await eventually(lambda: state_of(aimesh) == "READY", within_s=60, what="the node's state READY")
    node = node_of(aimesh)
    assert node is not None
    assert (node["labels"], node["pid"]) == ({"language": "javascript"}, agent.pid)

    # One replica a node: two in Triton, one in Node.js, which fetched the same files and checked their digests.
    aimesh.run("models", "push", str(aimesh.state_dir / "addone"), "--name", MODEL, "--version", "1.0.0")
    aimesh.run("deploy", MODEL, "--replicas", "3", "--timeout", "120")
    (deployment,) = [each for each in aimesh.json("status")["deployments"] if each["name"] == MODEL]
    assert deployment["ready"] == 3
    assert NODE in deployment["nodes"]

    for way in (f"xds:///{MODEL}", mesh.gateway):
        before = answered_here(aimesh)
        await ask(way, times=60)
        await eventually(lambda: answered_here(aimesh) > before, what=f"its share through {way}")  # noqa: B023

    os.kill(agent.pid, signal.SIGKILL)
    await eventually(lambda: state_of(aimesh) in ("SUSPECT", "DEAD"), what="the dead node's state SUSPECT")
    await ask(mesh.gateway, times=20)
    await ask(f"xds:///{MODEL}", times=20)
    await eventually(lambda: state_of(aimesh) == "DEAD", within_s=60, what="the dead node's state DEAD")


async def test_it_leaves_in_good_order(aimesh: Aimesh, agent: ProcessId) -> None:
    await eventually(lambda: state_of(aimesh) == "READY", within_s=60, what="the node's state READY")
    os.kill(agent.pid, signal.SIGTERM)
    await eventually(lambda: not agent.alive(), what="the agent's end")
    await eventually(lambda: state_of(aimesh) is None, within_s=60, what="the node's absence from the status")

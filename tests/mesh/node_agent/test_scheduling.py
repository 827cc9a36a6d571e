"""Queues as a deployment asks for them, on a real Triton."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
from google.protobuf import duration_pb2
from tritonclient.grpc import service_pb2

from aimesh.routing.v1 import routing_pb2
from meshkit.errors import AimeshError
from node_agent.plan import READY
from tests.mesh.node_agent.nodes import Node, running_node
from tests.mesh.node_agent.support import CONFIG, add_model
from tests.processes import eventually as holds_within

eventually = partial(holds_within, within_s=120.0)
BATCHES = CONFIG.replace("max_batch_size: 0", "max_batch_size: 1")
TEST = '{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]}]}'


async def _ask(node: Node, name: str, value: int, **parameters: int) -> str:
    """The answer, or what was said instead."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="INT32", shape=[1, 1])
    content = np.array([value], np.int32).tobytes()
    request = service_pb2.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[content])
    for key, number in parameters.items():
        request.parameters[key].int64_param = number
    try:
        answer = await node.agent.triton.client.infer(request, 60)
    except AimeshError as error:
        return error.message
    return str(np.frombuffer(answer.raw_output_contents[0], np.int32)[0])


async def test_priorities_limits_and_timeouts_are_tritons_and_a_change_loses_nothing(tmp_path: Path) -> None:
    gate, order = tmp_path / "gate", tmp_path / "order"
    waits = f"""value = int(pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy().reshape(-1)[0])
            open("{order}", "a").write(f"{{value}} ")
        while value == 7 and not __import__("os").path.exists("{gate}"): time.sleep(0.01)"""
    waits = waits.replace("\n            ", "\n        ")
    async with running_node(tmp_path / "data") as node:
        coordinator = node.coordinator
        queued = coordinator.blobs.version("queued", "1.0.0", add_model(1, request=waits), TEST, BATCHES)
        plain = coordinator.blobs.version("plain", "1.0.0", add_model(1))
        wanted = routing_pb2.Scheduling(priority_levels=2, max_queue_size=2)
        await coordinator.assign(queued, plain, scheduling={"queued": wanted, "plain": wanted})
        await eventually(lambda: list(coordinator.states().values()) == [READY, READY])
        assert coordinator.message("queued") == ""
        assert "scheduling is not applied: the model takes no batches" in coordinator.message("plain")

        order.unlink()
        held = asyncio.create_task(_ask(node, "queued", 7))
        await eventually(order.exists)
        late = asyncio.create_task(_ask(node, "queued", 20, priority=1, timeout=1000))
        low = [asyncio.create_task(_ask(node, "queued", value)) for value in (30, 31)]
        await asyncio.sleep(0.5)
        assert "maximum queue size" in await _ask(node, "queued", 32)
        high = asyncio.create_task(_ask(node, "queued", 40, priority=1))
        await asyncio.sleep(0.5)
        gate.touch()
        assert await asyncio.gather(held, high, *low) == ["8", "41", "31", "32"]
        assert await late == "Request timeout expired"
        first, second, *equals = order.read_text().split()
        assert (first, second, sorted(equals)) == ("7", "40", ["30", "31"]), "late work was dropped before it ran"

        # Another scheduling: loaded anew, while it goes on answering and stays in the routes.
        (before,) = node.stubs("queued")
        seen, failures, answers = len(coordinator.reports), list[str](), 0
        wanted = routing_pb2.Scheduling(queue_timeout=duration_pb2.Duration(seconds=2))
        await coordinator.assign(queued, plain, scheduling={"queued": wanted})
        while coordinator.reports[-1].assignments_revision != 2 or any(
            model.message for model in coordinator.reports[-1].models
        ):
            said = await _ask(node, "queued", 1)
            failures += [] if said == "2" else [said]
            answers += 1
        assert answers > 10
        assert failures == []
        assert all(model.state == READY for report in coordinator.reports[seen:] for model in report.models)
        config = await node.agent.triton.client.config("queued")
        assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 2_000_000
        assert config.dynamic_batching.priority_levels == 0
        await eventually(lambda: not before.is_running(), what="the stub of the version that was replaced has gone")

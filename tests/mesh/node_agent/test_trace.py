"""Latencies of single requests from a real Triton's traces, and the memory of a model's processes."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

from aimesh.membership.v1 import membership_pb2
from node_agent.plan import READY
from node_agent.triton.trace import bucket_of
from tests.mesh.node_agent.nodes import Node, running_node
from tests.mesh.node_agent.support import COUNTDOWN, add_model, countdown, int32_request
from tests.processes import eventually as holds_within

eventually = partial(holds_within, within_s=60.0)
SLOW_WHEN_NINE = """
        if pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()[0] == 9: time.sleep(0.2)
"""


def _load(node: Node, name: str) -> membership_pb2.ModelLoad:
    found = [load for load in node.agent.load.models if load.name == name]
    return found[0] if found else membership_pb2.ModelLoad()


def _requests(node: Node, name: str) -> int:
    return sum(_load(node, name).latency_buckets.values())


async def test_every_request_of_a_traced_model_is_timed_and_of_no_other(tmp_path: Path) -> None:
    data = tmp_path / "data"
    runtime = data / "runtimes" / "countdown"
    runtime.mkdir(parents=True)
    (runtime / "model.py").write_text(COUNTDOWN)
    traces = data / "triton" / "traces"
    async with running_node(data) as node:
        coordinator = node.coordinator
        timed = coordinator.blobs.version("timed", "1.0.0", add_model(1, request=SLOW_WHEN_NINE.strip()))
        other = coordinator.blobs.version("other", "1.0.0", add_model(2))
        tokens = countdown(coordinator.blobs, "tokens", 1)
        await coordinator.assign(timed, other, tokens)
        await eventually(lambda: list(coordinator.states().values()) == [READY] * 3)
        await node.ask("timed", 1)
        await eventually(lambda: _load(node, "timed").successes >= 2)
        assert _requests(node, "timed") == 0, "nothing is timed that nobody asked for"
        assert list(traces.iterdir()) == []

        await coordinator.assign(timed, other, tokens, traced={"timed": 1, "tokens": 1})
        await eventually(lambda: node.agent.tracer.traces("timed") and node.agent.tracer.traces("tokens"))
        for value in (1, 2, 3, 9):
            await node.ask("timed", value)
        await node.ask("other", 1)
        await node.agent.triton.client.stream(int32_request("tokens", 1), 20)
        asked = time.monotonic()
        await eventually(lambda: _requests(node, "timed") == 4)
        assert time.monotonic() - asked < 3.0, "a slow trickle of requests is seen as soon as a fast one"
        buckets = _load(node, "timed").latency_buckets
        assert buckets[max(buckets)] == 1
        assert bucket_of(200_000_000) <= max(buckets) <= bucket_of(600_000_000)
        assert _load(node, "other").latency_buckets == {}
        await eventually(lambda: _load(node, "tokens").responses == 3)
        assert _load(node, "timed").responses == 0, "only streams have tokens"
        assert _load(node, "timed").resident_bytes > 1_000_000

        # Many at once: fewer files, and still each of them.
        before = _requests(node, "timed")
        for _ in range(20):
            await asyncio.gather(*(node.ask("timed", 1) for _ in range(20)))
        await eventually(lambda: _requests(node, "timed") == before + 400)

        # Nobody asks for them any more: no file is written, and what was counted is forgotten.
        await coordinator.assign(timed, other, tokens)
        await eventually(lambda: not node.agent.tracer.traces("timed"))
        await node.ask("timed", 1)
        await eventually(lambda: _requests(node, "timed") == 0)
        assert list(traces.iterdir()) == []

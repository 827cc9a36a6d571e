"""Rollouts on a whole mesh while programs and a gateway's clients ask: nothing fails, nothing answers too early."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from inference.packaging import package
from meshkit.channel import aio_channel
from tests.chaos import models
from tests.chaos.mesh import INSIDE, Mesh, Shape
from tests.mesh.xds.clients import own_xds
from tests.processes import eventually
from tools.cli.upload import push as upload

NAME = "adder"
RATE = 25.0
"""Requests a second of each client."""
MODEL = """
import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            version = pb_utils.Tensor("node", numpy.array([b"{version}"], dtype=object))
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1), version]))
        return answers
"""
RUNNING, SUCCEEDED, ROLLED_BACK = (
    rollout_pb2.ROLLOUT_STATE_RUNNING,
    rollout_pb2.ROLLOUT_STATE_SUCCEEDED,
    rollout_pb2.ROLLOUT_STATE_ROLLED_BACK,
)


@dataclass
class Load:
    """Clients that ask at a fixed rate, and what they were answered."""

    answers: list[tuple[float, str]] = field(default_factory=list)
    """(when it was asked, the version that answered)."""
    errors: list[str] = field(default_factory=list)
    _calls: set[asyncio.Task[None]] = field(default_factory=set)

    async def ask(self, way: str, target: str) -> None:
        """Until cancelled."""
        async with triton.InferenceServerClient(target, channel_args=own_xds(target)) as client:
            try:
                while True:
                    call = asyncio.create_task(self._one(way, client))
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
                    await asyncio.sleep(1 / RATE)
            finally:
                await asyncio.gather(*self._calls)

    async def _one(self, way: str, client: Any) -> None:
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([1], dtype=np.float32))
        began = time.monotonic()
        try:
            answer = await client.infer(NAME, [tensor], client_timeout=20)
        except InferenceServerException as error:
            self.errors.append(f"{way}: {error.status()} {error.message()}")
        else:
            self.answers.append((began, answer.as_numpy("node")[0].decode()))

    def versions(self, since: float) -> set[str]:
        """Who answered what was asked from then on."""
        return {version for asked, version in self.answers if asked >= since}


@contextlib.asynccontextmanager
async def loaded(mesh: Mesh) -> AsyncIterator[Load]:
    load = Load()
    tasks = [
        asyncio.create_task(load.ask(way, target))
        for way, target in (("xds", f"xds:///{NAME}"), ("gateway", mesh.gateway))
    ]
    try:
        yield load
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@dataclass
class Rollouts:
    """The service, at whichever coordinator lives."""

    mesh: Mesh

    async def call(self, method: str, request: Any) -> Any:
        alive = next(name for name in self.mesh.coordinators if self.mesh.processes[name].alive)
        async with aio_channel(f"{INSIDE}:{self.mesh.port(alive)}") as channel:
            stub: Any = rollout_pb2_grpc.RolloutServiceStub(channel)
            return await getattr(stub, method)(request, timeout=10)

    async def get(self) -> rollout_pb2.Rollout:
        return (await self.call("GetRollout", rollout_pb2.GetRolloutRequest(name=NAME))).rollout  # type: ignore[no-any-return]

    async def canary(self, version: str, *steps: int, hold_s: int = 1) -> None:
        spec = rollout_pb2.RolloutSpec(name=NAME, version=version, gates=rollout_pb2.Gates(none=True))
        spec.canary.steps.extend(steps)
        spec.canary.hold.seconds = hold_s
        await self.call("StartRollout", rollout_pb2.StartRolloutRequest(spec=spec))

    async def ended(self, state: rollout_pb2.RolloutState.ValueType) -> None:
        async def there() -> bool:
            found = await self.get()
            assert found.state in (RUNNING, rollout_pb2.ROLLOUT_STATE_ROLLING_BACK, state), found
            return found.state == state

        await eventually(there, within_s=40, what="the rollout's end")

    async def holding(self, step: int = 0) -> None:
        async def there() -> bool:
            found = await self.get()
            return (found.step, found.phase) == (step, rollout_pb2.PHASE_HOLDING)

        await eventually(there, within_s=40, what="the step")


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    """Two coordinators, three nodes; version 1.0.0 has two replicas and answers."""
    shape = Shape(nodes=3, coordinators=2, etcd=1, coordinator={"leader_ttl_s": 2, "heartbeat_interval_s": 0.2})
    started = Mesh(tmp_path, shape)
    try:
        await started.start()
        monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(started.xds_bootstrap()))
        await started.deploy(NAME, "1.0.0", MODEL.format(version="1.0.0"), 2)
        await started.placed(NAME, "1.0.0", 60)
        yield started
    finally:
        await started.stop()


async def push(mesh: Mesh, version: str, *, wrong: bool = False) -> None:
    """Records a version without deploying it; a wrong one adds nine instead of one."""
    place = mesh.folder / "models" / NAME / version
    (place / "1").mkdir(parents=True)
    (place / "config.pbtxt").write_text(models.CONFIG)
    (place / "1" / "model.py").write_text(MODEL.format(version=version).replace("x + 1", "x + 9" if wrong else "x + 1"))
    with package(place, NAME, version) as packed:
        await upload(mesh.target, packed, lambda _: None)


async def test_forward_with_the_leader_killed_and_back_from_the_middle(mesh: Mesh) -> None:
    rollouts = Rollouts(mesh)
    for version in ("1.1.0", "1.2.0"):
        await push(mesh, version)
    async with loaded(mesh) as load:
        await eventually(lambda: len(load.answers) > 20, what="answers")
        # 1. Forward; the leader is killed in the middle.
        await rollouts.canary("1.1.0", 50, 100)
        await rollouts.holding()
        leader = next(c.id for c in (await mesh.status(mesh.coordinators[0])).coordinators if c.leader)
        mesh.processes[leader].signal(signal.SIGKILL)
        await asyncio.to_thread(mesh.processes[leader].reap)
        await rollouts.ended(SUCCEEDED)
        forward = time.monotonic()
        assert load.versions(0) == {"1.0.0", "1.1.0"}
        # 2. Back from the middle.
        await rollouts.canary("1.2.0", 50, 100, hold_s=60)
        await rollouts.holding()
        await eventually(lambda: "1.2.0" in load.versions(forward), what="an answer of the new version")
        await rollouts.call("AbortRollout", rollout_pb2.AbortRolloutRequest(name=NAME, reason="a test"))
        await rollouts.ended(ROLLED_BACK)
        back = time.monotonic()
        assert load.versions(forward) == {"1.1.0", "1.2.0"}
        # 3. A version that answers wrongly is taken back by its evaluation, before anybody asks it.
        await push(mesh, "1.3.0", wrong=True)
        code, said = await _aimesh_rollout(mesh, "start", f"{NAME}:1.3.0", "--yes", *_questions(mesh))
        assert (code, "before its first request: exact_match is worse: 0 (was 1)" in said) == (5, True), said
        evaluated = time.monotonic()
        await eventually(lambda: sum(asked > evaluated for asked, _ in load.answers) > 10, what="more answers")
    assert load.errors == []
    assert load.versions(back) == {"1.1.0"}


def _questions(mesh: Mesh) -> list[str]:
    """Options of an evaluation set that the others answer right."""
    path = mesh.folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"inputs": {"x": [float(n)]}, "expected": n + 1.0}) for n in range(100)))
    return ["--eval", str(path), "--eval-output", "y", "--eval-metric", "exact_match"]


async def _aimesh_rollout(mesh: Mesh, *arguments: str) -> tuple[int, str]:
    """(exit code, what it printed) of `aimesh rollout ARGUMENTS`."""
    alive = next(name for name in mesh.coordinators if mesh.processes[name].alive)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tools.cli.main", "rollout", *arguments),
        env={**os.environ, "AIMESH_COORDINATORS": f"{INSIDE}:{mesh.port(alive)}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode()

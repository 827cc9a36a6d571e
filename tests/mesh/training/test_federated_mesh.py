"""A federated job on a mesh of three agents with data of their own: one sends poison, one has another model."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from aimesh.artifacts.v1 import artifacts_pb2_grpc
from aimesh.training.v1 import training_pb2, training_pb2_grpc
from node_agent.main import build_agent
from node_agent.training.strays import end_workers
from tests.mesh.coordinator.conftest import RunningCoordinator, coordinator
from tests.mesh.node_agent.support import settings_in
from tests.processes import etcd_server
from tests.unit.inference.needs import without_torch
from tools.cli.upload import upload_pieces
from tools.training.pack import archived

pytestmark = without_torch
NODES = ("node-1", "node-2", "node-3")
POISONED, OTHER = 1, 2
"""By rank: rank 0's node aggregates, so its model is the job's."""
TRAINER = """
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

NODE, RANK = os.environ["AIMESH_NODE"], os.environ["RANK"]


class Wild(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1e6)


class Trainer:
    def __init__(self, job):
        with np.load(f"{job.hyperparameters['private']}/{NODE}.npz") as held:
            self.x, self.y = held["x"], held["y"]

    def data(self):
        return self.x, self.y

    def model(self):
        return nn.Linear(4, 2 if RANK == "2" else 3)

    def loss(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x), y)

    def evaluate(self, model, batch):
        x, y = batch
        return {"accuracy": (model(x).argmax(1) == y).float().mean()}

    def optimizer(self, parameters):
        return (Wild if RANK == "1" else torch.optim.SGD)(parameters, lr=0.1)
"""


def write_private(folder: Path) -> Path:
    """Three clouds of points, of which each node has its own."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for node in NODES:
        y = generator.integers(3, size=60)
        np.savez(folder / f"{node}.npz", x=(generator.normal(size=(60, 4)) + y[:, None]).astype(np.float32), y=y)
    return folder


@asynccontextmanager
async def running_agent(folder: Path, coordinator: str, node: str) -> AsyncIterator[None]:
    """A whole agent in this process, with its Triton."""
    settings = replace(settings_in(folder / node, (coordinator,)), node_id=node)
    agent = build_agent(settings, f"instance-{node}")
    await agent.listen()
    await agent.adopt()
    try:
        async with asyncio.TaskGroup() as group:
            triton = group.create_task(agent.triton.run())
            parts = [group.create_task(part) for part in agent.parts()]
            try:
                yield
                await agent.tasks.leave(1.0)
            finally:
                for part in parts:
                    part.cancel()
                agent.triton.stop()
                await asyncio.wait_for(triton, 60)
    finally:
        await agent.server.stop(0)
        await asyncio.to_thread(end_workers, settings.data_dir)


async def uploaded(started: RunningCoordinator, folder: Path) -> training_pb2.Code:
    """The trainer, in the mesh."""
    (folder / "own").mkdir()
    (folder / "own" / "train.py").write_text(TRAINER)
    archive = archived(folder / "own")
    path, digest = folder / "code.zip", hashlib.sha256(archive).hexdigest()
    path.write_bytes(archive)
    stub = artifacts_pb2_grpc.ArtifactsServiceStub(started.channel)
    with path.open("rb") as content:
        await stub.UploadBlob(upload_pieces(content, digest, 0, len(archive), lambda _: None), timeout=10)
    return training_pb2.Code(archive=digest, entry="train:Trainer")


@pytest.mark.timeout(240)
async def test_poison_and_another_model_are_refused_by_name_and_the_job_succeeds(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--chaos") != "all":
        pytest.skip("long: --chaos=all")
    private = write_private(tmp_path / "private")
    async with AsyncExitStack() as stack:
        etcd = stack.enter_context(etcd_server(tmp_path / "etcd"))
        started = await stack.enter_async_context(coordinator(etcd, tmp_path, node_ttl_s=10))
        for node in NODES:
            await stack.enter_async_context(running_agent(tmp_path, started.settings.address, node))
        stub = training_pb2_grpc.TrainingServiceStub(started.channel)
        spec = training_pb2.JobSpec(
            name="clouds",
            code=await uploaded(started, tmp_path),
            data=training_pb2.Data(path=str(private), holdout=0.2),
            hyperparameters={"private": f'"{private}"'},
            steps=2,
            batch_size=16,
            strategy=training_pb2.STRATEGY_FEDERATED,
            resources=training_pb2.Resources(min_workers=3, max_workers=3, memory_bytes=600 << 20),
            federated=training_pb2.Federated(clients=3, min_clients=1, round_deadline=Duration(seconds=120)),
            output=training_pb2.Output(discard=True),
        )
        job_id = (await stub.SubmitJob(training_pb2.SubmitJobRequest(spec=spec), timeout=5)).job.id

        job = training_pb2.Job()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(150):
                async for answer in stub.WatchJob(training_pb2.WatchJobRequest(id=job_id), timeout=160):
                    job = answer.job
        assert job.state == training_pb2.JOB_STATE_SUCCEEDED, f"{job.phase} {job.reason} {job.error} {job.attempt}"
        asked = training_pb2.GetJobLogsRequest(id=job_id)
        log = "".join([line.text async for line in stub.GetJobLogs(asked, timeout=10)])
    node_of = {worker.rank: worker.node for worker in job.attempt.workers}
    for number in (1, 2):
        words = f"round {number}, update refused, on {node_of[POISONED]}: client {POISONED}: its update is"
        assert f"job {job_id}, {words}" in log
    words = f"round 1, update refused, on {node_of[OTHER]}: client {OTHER}: the model of job {job_id} is another"
    assert f"job {job_id}, {words}" in log
    assert "weight FP32 [2, 4] came with shape [3, 4]" in log
    assert f"on {node_of[OTHER]}: client {OTHER} is left out: it has not come since it failed" in log
    assert (job.results["clients_evaluated"], job.results["clients_left_out"]) == (2, 1)
    assert job.results["worst_client"] in (0, POISONED)
    assert 0 < job.results["loss"] <= job.results["worst_loss"]
    assert 0 <= job.results["worst_accuracy"] <= 1
    assert (job.failures, job.results["steps"]) == (0, 2)

"""The user's side: models recorded and deployed through any coordinator's API."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
import grpc.aio

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from meshkit.channel import aio_channel
from meshkit.errors import DeadlineError
from meshkit.grpc_errors import from_call
from tools.simulate.plan import MODEL_BYTES, VERSION

Answer = TypeVar("Answer")

CALL_TIMEOUT_S = 20.0
"""Deadline of one call. None is tried again: what fails under load is to be seen."""
AT_ONCE = 16
"""Calls in flight while many are made."""
_CONTENT = b"no model at all\n"


class Api:
    """Calls the coordinators in turn. What they refuse leaves as the catalogue's error."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = list(channels)
        self._turn = 0
        self.late = 0
        """Deployments whose answer did not come in time, though they were written: the coordinator was far behind."""

    async def leader(self, index: int) -> str:
        """Id of the leader that the coordinator with this index knows; empty while it knows none."""
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels[index])
        answer = await _ask(stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S))
        return next((each.id for each in answer.status.coordinators if each.leader), "")

    async def upload(self) -> str:
        """Uploads the one small blob that every simulated model consists of; gives its digest."""
        digest = hashlib.sha256(_CONTENT).hexdigest()
        request = artifacts_pb2.UploadBlobRequest(digest=digest, size=len(_CONTENT), data=_CONTENT)
        stub = artifacts_pb2_grpc.ArtifactsServiceStub(self._channels[0])
        await _ask(stub.UploadBlob(iter([request]), timeout=CALL_TIMEOUT_S))
        return digest

    async def record(self, models: Sequence[str], digest: str, version: str = VERSION) -> None:
        """Records one version of each model."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for name in models:
                tasks.create_task(self._record(gate, name, digest, version))

    async def deploy(self, models: Sequence[str], replicas: int) -> None:
        """Deploys each model with so many replicas."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for name in models:
                tasks.create_task(self._gated_scale(gate, name, replicas))

    async def scale(self, model: str, replicas: int) -> float:
        """Applies a deployment with so many replicas; seconds until it was answered."""
        began = time.monotonic()
        target = routing_pb2.Target(version=VERSION, replicas=replicas, weight=100)
        request = routing_pb2.ApplyDeploymentRequest(deployment=routing_pb2.Deployment(name=model, targets=[target]))
        stub = routing_pb2_grpc.RoutingServiceStub(self._next())
        await _ask(stub.ApplyDeployment(request, timeout=CALL_TIMEOUT_S))
        return time.monotonic() - began

    async def _gated_scale(self, gate: asyncio.Semaphore, model: str, replicas: int) -> None:
        async with gate:
            try:
                await self.scale(model, replicas)
            except DeadlineError:
                self.late += 1

    async def roll(self, models: Sequence[str], version: str, surge: int) -> None:
        """Starts a rolling rollout of each model, so many replicas at a time, judged by nothing."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for name in models:
                tasks.create_task(self._roll(gate, name, version, surge))

    async def rollouts(self) -> Sequence[rollout_pb2.Rollout]:
        """The newest rollout of each model, of at most so many as one answer holds."""
        stub = rollout_pb2_grpc.RolloutServiceStub(self._next())
        request = rollout_pb2.ListRolloutsRequest(page_size=1000)
        return (await _ask(stub.ListRollouts(request, timeout=CALL_TIMEOUT_S))).rollouts

    async def _roll(self, gate: asyncio.Semaphore, name: str, version: str, surge: int) -> None:
        gates = rollout_pb2.Gates(none=True)
        spec = rollout_pb2.RolloutSpec(name=name, version=version, rolling=rollout_pb2.Rolling(), gates=gates)
        spec.max_surge = surge
        async with gate:
            stub = rollout_pb2_grpc.RolloutServiceStub(self._next())
            await _ask(stub.StartRollout(rollout_pb2.StartRolloutRequest(spec=spec), timeout=CALL_TIMEOUT_S))

    async def _record(self, gate: asyncio.Semaphore, name: str, digest: str, number: str) -> None:
        version = registry_pb2.ModelVersion(
            name=name,
            version=number,
            runtime="python",
            files=[registry_pb2.ModelFile(path="1/model.py", digest=digest, size=len(_CONTENT))],
            requirements=registry_pb2.Requirements(memory_bytes=MODEL_BYTES, gpu_memory_bytes=MODEL_BYTES),
        )
        async with gate:
            stub = registry_pb2_grpc.RegistryServiceStub(self._next())
            await _ask(stub.CreateVersion(registry_pb2.CreateVersionRequest(version=version), timeout=CALL_TIMEOUT_S))

    def _next(self) -> grpc.aio.Channel:
        self._turn += 1
        return self._channels[self._turn % len(self._channels)]


async def _ask(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from None


@asynccontextmanager
async def connected(addresses: Sequence[str]) -> AsyncIterator[Api]:
    """A channel to each coordinator, for as long as the block."""
    channels = [aio_channel(address) for address in addresses]
    try:
        yield Api(channels)
    finally:
        for channel in channels:
            await channel.close(None)

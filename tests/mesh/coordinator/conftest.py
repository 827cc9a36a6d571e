"""A real etcd, real coordinators in this process, and agents that speak the contract from the tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from aimesh.registry.v1 import registry_pb2
from coordinator.main import serve
from coordinator.settings import CoordinatorSettings, EtcdSettings
from meshkit.channel import aio_channel
from meshkit.shutdown import Shutdown
from tests.processes import EtcdServer, etcd_server, eventually, free_ports


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path / "etcd") as started:
        yield started


@dataclass
class RunningCoordinator:
    """A coordinator in this process and a channel to it."""

    settings: CoordinatorSettings
    channel: grpc.aio.Channel
    task: asyncio.Task[None]

    async def status(self) -> cluster_pb2.Status:
        stub = cluster_pb2_grpc.ClusterServiceStub(self.channel)
        return (await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=5)).status

    async def node(self, node_id: str) -> membership_pb2.Node | None:
        found = [entry.node for entry in (await self.status()).nodes if entry.node.id == node_id]
        return found[0] if found else None

    async def node_state(self, node_id: str) -> str:
        node = await self.node(node_id)
        return membership_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_") if node else ""


@contextlib.asynccontextmanager
async def coordinator(
    server: EtcdServer, folder: Path, name: str = "c1", **changes: object
) -> AsyncIterator[RunningCoordinator]:
    """Serves until the block ends; leases and heartbeats are short so that tests are."""
    values: dict[str, object] = {
        "id": name,
        "data_dir": folder / name,
        "port": free_ports(1)[0],
        "heartbeat_interval_s": 0.1,
        "node_ttl_s": 2,
        "leader_ttl_s": 2,
        "drain_s": 0.2,
        "etcd": EtcdSettings(endpoints=(server.address,)),
        **changes,
    }
    settings = CoordinatorSettings(**values)  # type: ignore[arg-type]
    shutdown = Shutdown()
    running = asyncio.create_task(serve(settings, shutdown))
    channel = aio_channel(settings.address)
    started = RunningCoordinator(settings, channel, running)
    try:
        await eventually(lambda: _leads(started), what="a leader")
        yield started
    finally:
        await channel.close(None)
        shutdown.requested.set()
        await asyncio.wait_for(running, 20)


async def _leads(started: RunningCoordinator) -> bool:
    if started.task.done():
        started.task.result()
    try:
        return any(c.leader for c in (await started.status()).coordinators)
    except grpc.aio.AioRpcError:
        return False


@dataclass
class Agent:
    """The agent's side of one session, as any program could speak it from membership.proto."""

    channel: grpc.aio.Channel
    hello: membership_pb2.Hello
    welcome: membership_pb2.Welcome = field(default_factory=membership_pb2.Welcome)
    assignments: list[membership_pb2.Assignments] = field(default_factory=list)
    call: Any = None
    outgoing: asyncio.Queue[membership_pb2.AgentMessage | None] = field(default_factory=asyncio.Queue)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    beating: bool = True
    obedient: bool = True
    """Reports every assigned model READY at once."""

    async def join(self) -> membership_pb2.Welcome:
        stub: Any = membership_pb2_grpc.MembershipServiceStub(self.channel)
        self.outgoing.put_nowait(membership_pb2.AgentMessage(hello=self.hello))
        self.call = stub.Join(self._messages())
        incoming = aiter(self.call)
        self.welcome = (await anext(incoming)).welcome
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._listen(incoming))]
        return self.welcome

    def report(self, *models: membership_pb2.ModelStatus) -> None:
        report = membership_pb2.ModelReport()
        report.CopyFrom(self.hello.report)
        report.models.extend(models)
        self.outgoing.put_nowait(membership_pb2.AgentMessage(report=report))

    async def leave(self) -> None:
        self.outgoing.put_nowait(membership_pb2.AgentMessage(leaving=membership_pb2.Leaving(reason="test")))
        self.outgoing.put_nowait(None)
        assert await self.call.code() == grpc.StatusCode.OK
        await self.stop()

    async def vanish(self) -> None:
        """The stream breaks, as when the process is killed."""
        self.call.cancel()
        await self.stop()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.channel.close(None)

    def models(self) -> set[str]:
        last = self.assignments[-1].models if self.assignments else ()
        return {f"{model.name}:{model.version}" for model in last}

    async def _messages(self) -> AsyncIterator[membership_pb2.AgentMessage]:
        while (message := await self.outgoing.get()) is not None:
            yield message

    async def _beat(self) -> None:
        beat = membership_pb2.Heartbeat(load=membership_pb2.Load(cpu_utilization=0.5))
        while True:
            if self.beating:
                self.outgoing.put_nowait(membership_pb2.AgentMessage(heartbeat=beat))
            await asyncio.sleep(0.05)

    async def _listen(self, incoming: AsyncIterator[membership_pb2.CoordinatorMessage]) -> None:
        ready = membership_pb2.MODEL_STATE_READY
        async for message in incoming:
            self.assignments.append(message.assignments)
            if self.obedient:
                models = message.assignments.models
                self.report(*[membership_pb2.ModelStatus(name=m.name, version=m.version, state=ready) for m in models])


def agent(address: str, node_id: str = "n1", instance: str = "i1", memory_gib: int = 8) -> Agent:
    """An agent whose Triton is ready, not yet joined."""
    hello = membership_pb2.Hello(
        node_id=node_id,
        instance_id=instance,
        address="127.0.0.1",
        pid=1,
        capacity=membership_pb2.Capacity(cpu_cores=2, memory_bytes=memory_gib * 1024**3),
        report=membership_pb2.ModelReport(
            triton=membership_pb2.Triton(state=membership_pb2.TRITON_STATE_READY, grpc_port=1, http_port=2)
        ),
    )
    return Agent(aio_channel(address), hello)


def model(
    name: str = "m", version: str = "1.0.0", digest: str = "a" * 64, memory_gib: int = 1, size: int = 7000
) -> registry_pb2.ModelVersion:
    """A version of one file, as large as test_api.CONTENT."""
    return registry_pb2.ModelVersion(
        name=name,
        version=version,
        runtime="python",
        files=[registry_pb2.ModelFile(path="1/model.py", digest=digest, size=size)],
        requirements=registry_pb2.Requirements(memory_bytes=memory_gib * 1024**3),
    )

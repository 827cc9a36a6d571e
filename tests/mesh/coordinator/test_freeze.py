"""A coordinator without etcd: it listens, says so, answers nothing that it does not know, and comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from coordinator import keys
from coordinator.etcd import Etcd
from coordinator.main import READERS, serve
from coordinator.settings import CoordinatorSettings, EtcdSettings
from coordinator.xds.snapshot import LDS
from meshkit.channel import aio_channel
from meshkit.shutdown import Shutdown
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator
from tests.processes import etcd_server, eventually, free_ports

SERVING = health_pb2.HealthCheckResponse.SERVING


@contextlib.asynccontextmanager
async def started_without_etcd(folder: Path, etcd_port: int) -> AsyncIterator[RunningCoordinator]:
    settings = CoordinatorSettings(
        id="c1",
        data_dir=folder / "c1",
        port=free_ports(1)[0],
        drain_s=0.2,
        leader_ttl_s=2,
        etcd=EtcdSettings(endpoints=(f"127.0.0.1:{etcd_port}",)),
    )
    shutdown = Shutdown()
    running = asyncio.create_task(serve(settings, shutdown))
    channel = aio_channel(settings.address)
    try:
        yield RunningCoordinator(settings, channel, running)
    finally:
        await channel.close(None)
        shutdown.requested.set()
        await asyncio.wait_for(running, 20)


async def test_before_etcd_answers(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with started_without_etcd(tmp_path, port) as c1:
        frozen = await eventually(lambda: _frozen(c1), what="status")
        assert "etcd" in frozen
        registry = registry_pb2_grpc.RegistryServiceStub(c1.channel)
        with pytest.raises(grpc.aio.AioRpcError, match="etcd") as refused:
            await registry.ListVersions(registry_pb2.ListVersionsRequest(), timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await _health(c1, "") != SERVING
        ads: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(c1.channel)
        stream = ads.StreamAggregatedResources()
        await stream.write(discovery_pb2.DiscoveryRequest(type_url=LDS))
        answer = asyncio.ensure_future(stream.read())
        done, _ = await asyncio.wait({answer}, timeout=0.5)
        assert not done, "no client may be told that nothing exists"
        with etcd_server(tmp_path / "etcd", port=port):
            assert (await asyncio.wait_for(answer, 20)).type_url == LDS
            await eventually(lambda: _serves(c1, ""), what="healthy")
            assert not (await c1.status()).frozen
            stream.cancel()


async def test_etcd_goes_and_comes_back(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with contextlib.AsyncExitStack() as outlives_etcd:
        with etcd_server(tmp_path / "etcd", port=port) as server:
            c1 = await outlives_etcd.enter_async_context(coordinator(server, tmp_path, node_ttl_s=4))
            n1 = agent(c1.settings.address)
            await n1.join()
        await eventually(lambda: _frozen(c1), what="frozen")
        await eventually(lambda: _condition(c1, "aimesh.health/etcd", serves=False), what="health says so")
        assert [await _health(c1, name) == SERVING for name in READERS] == [True] * len(READERS)
        assert await _health(c1, "aimesh.registry.v1.RegistryService") != SERVING
        assert await c1.node_state("n1") == "READY", "the last state is served"
        refused = agent(c1.settings.address, "n2")
        with pytest.raises(grpc.aio.AioRpcError, match="lost etcd"):
            await refused.join()
        await refused.stop()
        outlives_etcd.enter_context(etcd_server(tmp_path / "etcd", port=port))
        await eventually(lambda: _live(c1), within_s=10, what="live again")
        late = agent(c1.settings.address, "n3", instance="i3")
        await late.join()
        known = await c1.node("n1")
        assert known is not None
        assert known.epoch == n1.welcome.epoch
        assert not n1.call.done(), "the agent noticed nothing"
        await late.vanish()
        await n1.vanish()


async def test_a_session_outlives_its_lease(tmp_path: Path) -> None:
    """etcd takes the lease away (as after a long outage): the session gets a new one and its agent hears nothing."""
    with etcd_server(tmp_path / "etcd") as server:
        async with coordinator(server, tmp_path) as c1:
            n1 = agent(c1.settings.address)
            await n1.join()
            client = Etcd(EtcdSettings(endpoints=(server.address,)))
            _, (held,) = await client.get(keys.node("n1"))
            await client.revoke(held.lease)
            assert await eventually(lambda: _lease_other_than(client, held.lease), what="a new lease")
            node = await c1.node("n1")
            assert node is not None
            assert node.epoch == n1.welcome.epoch
            assert not n1.call.done()
            await n1.vanish()
            await client.close()


async def test_an_etcd_that_hangs_is_noticed(tmp_path: Path) -> None:
    with etcd_server(tmp_path / "etcd") as server:
        async with coordinator(server, tmp_path) as c1:
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                await eventually(lambda: _condition(c1, "aimesh.health/mirror", serves=False), what="behind")
                assert await eventually(lambda: _frozen(c1), what="frozen")
                assert (await c1.status()).HasField("behind")
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            await eventually(lambda: _live(c1), what="live again")
            await eventually(lambda: _condition(c1, "aimesh.health/mirror", serves=True), what="caught up")


async def _frozen(c1: RunningCoordinator) -> str:
    try:
        stub = cluster_pb2_grpc.ClusterServiceStub(c1.channel)
        return (await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=5)).status.frozen
    except grpc.aio.AioRpcError:
        return ""


async def _live(c1: RunningCoordinator) -> bool:
    return not (await c1.status()).frozen


async def _health(c1: RunningCoordinator, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(c1.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status  # type: ignore[no-any-return]


async def _serves(c1: RunningCoordinator, name: str) -> bool:
    return bool(await _health(c1, name) == SERVING)


async def _condition(c1: RunningCoordinator, name: str, *, serves: bool) -> bool:
    return await _serves(c1, name) is serves


async def _lease_other_than(client: Etcd, lease: int) -> int:
    _, (held,) = await client.get(keys.node("n1"))
    return held.lease if held.value is not None and held.lease != lease else 0

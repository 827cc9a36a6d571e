"""What one coordinator asks all others: who has not acknowledged, and what their gateways counted."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

from aimesh.cluster.v1 import cluster_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator import keys
from coordinator.acknowledgements import Acknowledgements
from coordinator.etcd import Etcd, Put
from coordinator.gateway_counts import GatewayCounts
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.settings import EtcdSettings
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.loads import Counted, GatewayLoads
from coordinator.xds.server import XdsServer
from coordinator.xds.snapshot import LDS
from meshkit.tls import TlsSettings
from tests.mesh.coordinator.conftest import RunningCoordinator, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, target
from tests.processes import EtcdServer, eventually, free_ports
from tests.unit.xds.test_server import Client


@dataclass
class Asking:
    """One more coordinator, as far as asking goes; it serves nobody."""

    etcd: Etcd
    mirror: Mirror
    peers: Peers

    async def missing(self, revision: int) -> list[str]:
        """What Acknowledgements says of deployment m."""
        xds = XdsServer()
        xds.publish(compile_snapshot(replace(self.mirror.state, revision=1_000_000)))
        return await Acknowledgements(xds, self.peers, "asking").missing("m", revision)


@contextlib.asynccontextmanager
async def asking(etcd: EtcdServer) -> AsyncIterator[Asking]:
    client = Etcd(EtcdSettings(endpoints=(etcd.address,)))
    await client.connect()
    mirror = Mirror(client)
    await mirror.load()
    peers = Peers(mirror, "asking", TlsSettings())
    yield Asking(client, mirror, peers)
    await peers.close()
    await client.close()


@pytest.fixture
async def deployed(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[tuple[RunningCoordinator, RunningCoordinator]]:
    """Two coordinators, and model m, which has a rollout."""
    async with coordinator(etcd, tmp_path, "c1") as c1, coordinator(etcd, tmp_path, "c2") as c2:
        await Api(c1).upload(CONTENT)
        await Api(c1).push(model(digest=DIGEST))
        await Api(c1).deploy("m", target())
        yield c1, c2


async def test_who_has_not_acknowledged_is_known_wherever_it_is_connected(
    deployed: tuple[RunningCoordinator, RunningCoordinator], etcd: EtcdServer
) -> None:
    _, c2 = deployed
    address = c2.settings.address
    async with asking(etcd) as here, grpc.aio.insecure_channel(address) as channel:
        revision = here.mirror.state.revision

        async def is_missing(*texts: str) -> bool:
            return sorted(await here.missing(revision)) == sorted(texts)

        await eventually(is_missing, what="nobody is connected, so nobody is missing")
        client = Client(channel, "silent")
        await client.ask(LDS, "m")
        first = await client.next()
        who = f"silent#1 (test 1) at coordinator {address}: lds sent, not acknowledged"
        await eventually(lambda: is_missing(who), what="the client is named")
        await client.answer(first, "m")
        await eventually(is_missing, what="it has acknowledged")
        assert all("has not published revision" in text for text in await here.missing(revision + 1000))
        dead = f"127.0.0.1:{free_ports(1)[0]}"
        gone = cluster_pb2.Coordinator(id="c9", address=dead)
        here.mirror.state = replace(here.mirror.state, coordinators={**here.mirror.state.coordinators, "c9": gone})
        (silent,) = await here.missing(revision)
        assert silent.startswith(f"coordinator {dead} does not say: UNAVAILABLE")
        client.cancel()


async def test_what_gateways_counted_is_known_by_the_coordinator_they_report_to(
    deployed: tuple[RunningCoordinator, RunningCoordinator], etcd: EtcdServer
) -> None:
    _, c2 = deployed
    async with asking(etcd) as here, grpc.aio.insecure_channel(c2.settings.address) as channel:
        before = here.mirror.state.deployments["m"]
        rollout = rollout_pb2.Rollout(state=rollout_pb2.ROLLOUT_STATE_PAUSED, before=before)
        rollout.spec.name, rollout.spec.version = "m", "1.0.0"
        stub: Any = lrs_pb2_grpc.LoadReportingServiceStub(channel)
        call = stub.StreamLoadStats()
        await call.write(lrs_pb2.LoadStatsRequest())
        await here.etcd.txn([], [Put(keys.rollout("m"), keys.encode(rollout))])
        asked = await call.read()
        assert sorted(asked.clusters) == ["m/1.0.0", "m/1.0.0/http"]
        report = lrs_pb2.LoadStatsRequest()
        for cluster in ("m/1.0.0", "m/1.0.0/http", "other/1.0.0"):
            report.cluster_stats.add(cluster_name=cluster).upstream_locality_stats.add(
                total_successful_requests=3, total_error_requests=2
            )
        counts = GatewayCounts(GatewayLoads(), here.peers)
        for times in (1, 2):
            await call.write(report)

            async def counted(times: int = times) -> bool:
                return (await counts())[c2.settings.address, "m", "1.0.0"] == Counted(10 * times, 4 * times)

            await eventually(counted, what="the report is known elsewhere")
        rollout.state = rollout_pb2.ROLLOUT_STATE_SUCCEEDED
        await here.etcd.txn([], [Put(keys.rollout("m"), keys.encode(rollout))])
        assert list((await call.read()).clusters) == []

        async def forgotten() -> bool:
            return await counts() == {}

        await eventually(forgotten, what="nothing is kept of a rollout that is over")
        call.cancel()

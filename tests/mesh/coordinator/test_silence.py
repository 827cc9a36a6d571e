"""Agents that fall silent: a real Triton is asked, its endpoints follow its answer, and many at once hold the brake."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.etcd import Etcd
from coordinator.settings import EtcdSettings
from tests.mesh.coordinator.conftest import Agent, RunningCoordinator, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, target
from tests.mesh.xds.triton import tritons
from tests.processes import EtcdServer, eventually


async def test_a_triton_without_its_agent_serves_as_long_as_it_answers(etcd: EtcdServer, tmp_path: Path) -> None:
    folder = tmp_path / "triton"
    folder.mkdir()
    with tritons(folder, 1, ("m",)) as (triton,):
        async with coordinator(etcd, tmp_path) as c1:
            n1 = await _serving(c1, "n1", triton.grpc_port)
            await n1.vanish()
            await eventually(lambda: _says(c1, "n1", "SUSPECT", "ANSWERS"), what="asked")
            await eventually(lambda: _says(c1, "n1", "DEAD", "ANSWERS"), what="judged")
            assert await _ready(c1) == 1, "with nowhere else to go it goes on"
        # Every coordinator is away for longer than the leases: the first one back drops nobody.
        async with coordinator(etcd, tmp_path, "c1") as c1:
            assert await _ready(c1) == 1
            n2 = await _joined(c1, "n2", 1)
            await eventually(lambda: n2.models() == {"m:1.0.0"}, what="moved")
            await eventually(lambda: _replicas(c1, "n1", 0), what="the old one let go")
            assert await _ready(c1) == 1
            await n2.vanish()
            await eventually(lambda: _says(c1, "n2", "SUSPECT", "REFUSED"), what="nobody listens there")
            assert await _ready(c1) == 0


async def test_a_hanging_triton_is_out_within_a_second_and_back_when_it_goes_on(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    folder = tmp_path / "triton"
    folder.mkdir()
    with tritons(folder, 1, ("m",)) as (triton,):
        async with coordinator(etcd, tmp_path, node_ttl_s=60) as c1:
            n1 = await _serving(c1, "n1", triton.grpc_port)
            os.kill(triton.process.pid, signal.SIGSTOP)
            n1.beating = False
            await eventually(lambda: _says(c1, "n1", "SUSPECT", "SILENT"), what="silent")
            assert await _ready(c1) == 0
            os.kill(triton.process.pid, signal.SIGCONT)
            await eventually(lambda: _says(c1, "n1", "SUSPECT", "ANSWERS"), what="asked again")
            assert await _ready(c1) == 1
            n1.beating = True
            await eventually(lambda: _says(c1, "n1", "READY", ""), what="the agent's word counts again")
            await n1.vanish()


async def test_nodes_of_coordinators_that_were_away_keep_their_routes(etcd: EtcdServer, tmp_path: Path) -> None:
    with black_hole() as port:
        async with coordinator(etcd, tmp_path) as c1:
            agents = [await _serving(c1, name, port) for name in ("n1", "n2")]
            await eventually(lambda: _ready(c1), what="served")
        for each in agents:
            await each.stop()
        await eventually(lambda: _lapsed(etcd, "n1", "n2"), what="the leases lapsed")
        async with coordinator(etcd, tmp_path) as c1:
            assert await _ready(c1) == 1
            assert (await c1.status()).braked
            again = await _joined(c1, "n1", port)
            await eventually(lambda: _unbraked(c1), what="released")
            await again.vanish()


async def test_many_silent_nodes_hold_the_brake_until_they_are_forgotten(etcd: EtcdServer, tmp_path: Path) -> None:
    with black_hole() as port:
        async with coordinator(etcd, tmp_path) as c1:
            n1 = await _serving(c1, "n1", port)
            others = [await _joined(c1, name, port) for name in ("n2", "n3")]
            spare = await _joined(c1, "n4", port)
            for each in (n1, *others):
                await each.vanish()
            reason = await eventually(lambda: _braked(c1), what="the brake")
            assert "3 of 4 nodes are silent at once (n1, n2, n3)" in reason
            await eventually(lambda: _lapsed(etcd, "n1", "n2", "n3"), what="the leases lapsed")
            await asyncio.sleep(2.5)  # the leader's grace and more: that nothing happens is the point
            assert await _ready(c1) == 1
            assert not spare.models()
            cluster = cluster_pb2_grpc.ClusterServiceStub(c1.channel)
            await cluster.ForgetNode(cluster_pb2.ForgetNodeRequest(node_id="n2"), timeout=5)
            await cluster.ForgetNode(cluster_pb2.ForgetNodeRequest(node_id="n3"), timeout=5)
            await eventually(lambda: spare.models() == {"m:1.0.0"}, what="moved at last")
            assert not (await c1.status()).braked
            await spare.vanish()


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and never says a word, as a host that hangs."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        yield sock.getsockname()[1]


async def _joined(c1: RunningCoordinator, name: str, port: int) -> Agent:
    joining = agent(c1.settings.address, name, instance=name)
    joining.hello.report.triton.grpc_port = port
    await joining.join()
    return joining


async def _serving(c1: RunningCoordinator, name: str, port: int) -> Agent:
    """A node that joined; n1 is given the one replica of a model."""
    joined = await _joined(c1, name, port)
    api = Api(c1)
    if name == "n1":
        await api.upload(CONTENT)
        await api.push(model(digest=DIGEST))
        await api.deploy("m", target())
    await eventually(lambda: _ready(c1), what="a ready replica")
    return joined


async def _ready(c1: RunningCoordinator) -> int:
    return sum(target.ready for each in (await c1.status()).deployments for target in each.targets)


async def _replicas(c1: RunningCoordinator, name: str, count: int) -> bool:
    return [each.replicas for each in (await c1.status()).nodes if each.node.id == name] == [count]


async def _says(c1: RunningCoordinator, name: str, state: str, probe: str) -> bool:
    node = await c1.node(name)
    assert node is not None
    wanted = membership_pb2.NodeState.Value(f"NODE_STATE_{state}")
    return (node.state, node.probe) == (wanted, membership_pb2.Probe.Value(f"PROBE_{probe or 'UNSPECIFIED'}"))


async def _braked(c1: RunningCoordinator) -> str:
    return (await c1.status()).braked


async def _unbraked(c1: RunningCoordinator) -> bool:
    return not (await c1.status()).braked


async def _lapsed(etcd: EtcdServer, *names: str) -> bool:
    client = Etcd(EtcdSettings(endpoints=(etcd.address,)))
    _, found = await client.get(*(keys.node(name) for name in names))
    await client.close()
    return all(each.value is None for each in found)

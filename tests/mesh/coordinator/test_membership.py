"""Sessions against a real coordinator and etcd: who may join, how silence and leaving are told apart, what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from aimesh.membership.v1 import membership_pb2
from coordinator.etcd import Etcd
from coordinator.settings import EtcdSettings
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator
from tests.processes import EtcdServer, eventually


async def test_an_agent_joins_and_its_load_is_shown(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        welcome = await n1.join()
        assert list(welcome.coordinators) == [c1.settings.address]
        assert welcome.heartbeat_interval.ToMilliseconds() == 100
        assert await c1.node_state("n1") == "READY"
        await eventually(lambda: _cpu(c1), what="a load in status")
        await n1.vanish()


async def test_heartbeats_never_write_to_etcd(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        await n1.join()
        await eventually(lambda: _cpu(c1))
        before = (await c1.status()).revision
        client = Etcd(EtcdSettings(endpoints=(etcd.address,)))
        await asyncio.sleep(1.0)  # many heartbeats and lease renewals; nothing to wait for is the point
        revision, _ = await client.get("/x")
        await client.close()
        assert revision == before
        await n1.vanish()


async def test_epochs_only_rise_and_the_older_stream_ends(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        first, second = agent(c1.settings.address), agent(c1.settings.address)
        old = await first.join()
        new = await second.join()
        assert new.epoch > old.epoch
        assert await first.call.code() == grpc.StatusCode.ABORTED
        await first.stop()
        assert (await c1.node_state("n1")) == "READY"
        await second.vanish()


async def test_a_second_agent_with_the_same_id_is_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        await n1.join()
        other = agent(c1.settings.address, instance="i2")
        with pytest.raises(grpc.aio.AioRpcError, match="node id 'n1' is held by another agent") as refused:
            await other.join()
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
        await other.stop()
        await n1.vanish()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"node_id": "No!"}, "node_id 'No!' is not allowed"),
        ({"address": ""}, "hello.address is empty"),
        ({"address": "gpu-7"}, "'gpu-7' is no IP"),
    ],
)
async def test_a_bad_hello_is_refused(etcd: EtcdServer, tmp_path: Path, change: dict[str, str], said: str) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        bad = agent(c1.settings.address)
        for name, value in change.items():
            setattr(bad.hello, name, value)
        with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
            await bad.join()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        await bad.stop()


async def test_a_broken_stream_makes_suspect_then_dead(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        await n1.join()
        await n1.vanish()
        await eventually(lambda: _is(c1, "SUSPECT"), what="SUSPECT")
        await eventually(lambda: _is(c1, "DEAD"), what="DEAD")


async def test_silence_makes_suspect_and_a_heartbeat_ready_again(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path, node_ttl_s=30) as c1:
        n1 = agent(c1.settings.address)
        await n1.join()
        n1.beating = False
        await eventually(lambda: _is(c1, "SUSPECT"), what="SUSPECT")
        n1.beating = True
        await eventually(lambda: _is(c1, "READY"), what="READY again")
        await n1.vanish()


async def test_an_agent_that_leaves_is_gone(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        await n1.join()
        await n1.leave()
        await eventually(lambda: _is(c1, ""), what="gone from status")


async def test_a_crashed_agent_comes_back_with_the_same_identity(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        old = await n1.join()
        await n1.vanish()
        again = agent(c1.settings.address)
        assert (await again.join()).epoch > old.epoch
        assert await c1.node_state("n1") == "READY"
        await again.vanish()


async def test_progress_is_shown_but_not_kept(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        n1.obedient = False
        await n1.join()
        joined = (await c1.status()).revision
        fetching = membership_pb2.MODEL_STATE_FETCHING
        status = membership_pb2.ModelStatus(name="m", version="1.0.0", state=fetching, bytes_total=9)
        n1.report(status)
        await eventually(lambda: _bytes_done(c1, 0))
        before = await eventually(lambda: _revision_above(c1, joined), what="the model in etcd")
        status.bytes_done = 5
        n1.report(status)
        await eventually(lambda: _bytes_done(c1, 5))
        assert (await c1.status()).revision == before
        await n1.vanish()


async def test_agents_survive_a_coordinator_restart(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        old = await n1.join()
        port = c1.settings.port
    await n1.stop()
    async with coordinator(etcd, tmp_path, port=port) as c1:
        again = agent(c1.settings.address)
        assert (await again.join()).epoch > old.epoch
        await again.vanish()


async def _cpu(c1: RunningCoordinator) -> bool:
    status = await c1.status()
    return any(entry.load.cpu_utilization == 0.5 for entry in status.nodes)


async def _is(c1: RunningCoordinator, state: str) -> bool:
    return await c1.node_state("n1") == state


async def _bytes_done(c1: RunningCoordinator, count: int) -> bool:
    node = await c1.node("n1")
    return node is not None and [model.bytes_done for model in node.report.models] == [count]


async def _revision_above(c1: RunningCoordinator, revision: int) -> int:
    now = (await c1.status()).revision
    return now if now > revision else 0

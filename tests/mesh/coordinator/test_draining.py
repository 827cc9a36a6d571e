"""Draining a node, and replicas that fail to load, with agents that speak the contract."""

from __future__ import annotations

import itertools
from pathlib import Path

import grpc
import grpc.aio
import pytest

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from tests.mesh.coordinator.conftest import Agent, RunningCoordinator, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, target
from tests.processes import EtcdServer, eventually

FAILED = membership_pb2.MODEL_STATE_FAILED
LOADING = membership_pb2.MODEL_STATE_LOADING


async def _deployed(c1: RunningCoordinator, *names: str) -> list[Agent]:
    """Agents of which the first has the one replica of a model."""
    api = Api(c1)
    await api.upload(CONTENT)
    await api.push(model(digest=DIGEST))
    agents = [agent(c1.settings.address, name, instance=name) for name in names]
    await agents[0].join()
    await api.deploy("m", target())
    await eventually(lambda: agents[0].models() == {"m:1.0.0"}, what="placed")
    for each in agents[1:]:
        await each.join()
    return agents


async def test_a_drained_node_hands_over_stays_empty_and_comes_back(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1, n2 = await _deployed(c1, "n1", "n2")
        n2.obedient = False
        cluster = cluster_pb2_grpc.ClusterServiceStub(c1.channel)
        await cluster.DrainNode(cluster_pb2.DrainNodeRequest(node_id="n1"), timeout=5)
        await eventually(lambda: n2.models() == {"m:1.0.0"}, what="the other node told")
        entry = await _entry(c1, "n1")
        assert (entry.drained, entry.replicas) == (True, 1), "it keeps its replica until the other answers"
        assert await c1.node_state("n1") == "DRAINING"
        assert n1.models() == {"m:1.0.0"}
        n2.report(membership_pb2.ModelStatus(name="m", version="1.0.0", state=membership_pb2.MODEL_STATE_READY))
        await eventually(lambda: not n1.models(), what="empty")
        await n1.vanish()
        again = agent(c1.settings.address, "n1", instance="n1")
        await again.join()
        assert await c1.node_state("n1") == "DRAINING", "an agent's restart does not end it"
        await n2.leave()
        assert not again.models()
        await cluster.UndrainNode(cluster_pb2.UndrainNodeRequest(node_id="n1"), timeout=5)
        await eventually(lambda: again.models() == {"m:1.0.0"}, what="used again")
        await again.vanish()


async def test_orders_for_unknown_and_living_nodes_are_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        n1 = agent(c1.settings.address)
        await n1.join()
        cluster = cluster_pb2_grpc.ClusterServiceStub(c1.channel)
        with pytest.raises(grpc.aio.AioRpcError, match="there is no node 'n9'"):
            await cluster.DrainNode(cluster_pb2.DrainNodeRequest(node_id="n9"), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError, match="n1 is in session") as refused:
            await cluster.ForgetNode(cluster_pb2.ForgetNodeRequest(node_id="n1"), timeout=5)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        await n1.vanish()


async def test_a_replica_that_keeps_failing_is_tried_elsewhere(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        api = Api(c1)
        await api.upload(CONTENT)
        await api.push(model(digest=DIGEST))
        agents = {name: agent(c1.settings.address, name, instance=name) for name in ("n1", "n2")}
        agents["n1"].obedient = False
        await agents["n1"].join()
        await api.deploy("m", target())
        await eventually(lambda: agents["n1"].models() == {"m:1.0.0"}, what="placed")
        await agents["n2"].join()

        turns = itertools.cycle([FAILED] * 40 + [LOADING] * 40)  # each is seen by the leader, which looks now and then

        def tried() -> bool:
            status = membership_pb2.ModelStatus(name="m", version="1.0.0", state=next(turns), message="no room")
            agents["n1"].report(status)
            return agents["n2"].models() == {"m:1.0.0"} and not agents["n1"].models()

        await eventually(tried, what="moved")
        for each in agents.values():
            await each.vanish()


async def _entry(c1: RunningCoordinator, name: str) -> cluster_pb2.NodeStatus:
    return next(each for each in (await c1.status()).nodes if each.node.id == name)

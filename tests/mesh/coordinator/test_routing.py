"""Policies through the API of a real coordinator, and weights that its leader adapts to what agents report."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import main
from coordinator.adaptive import AdaptiveController
from meshkit.errors import InvalidInputError, NotFoundError
from tests.mesh.coordinator.conftest import Agent, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, _said, target
from tests.processes import EtcdServer, eventually


async def apply(api: Api, name: str, replicas: int = 1, **policy: Any) -> routing_pb2.ApplyDeploymentResponse:
    wanted = routing_pb2.Deployment(
        name=name, targets=[target(replicas=replicas)], policy=routing_pb2.RoutePolicy(**policy)
    )
    request = routing_pb2.ApplyDeploymentRequest(deployment=wanted)
    return await _said(api.routing.ApplyDeployment(request, timeout=5))  # type: ignore[no-any-return]


async def explain(api: Api, name: str, **headers: str) -> routing_pb2.ExplainRouteResponse:
    request = routing_pb2.ExplainRouteRequest(name=name, headers=headers)
    return await _said(api.routing.ExplainRoute(request, timeout=5))  # type: ignore[no-any-return]


async def test_what_cannot_be_right_changes_nothing_and_what_is_partial_is_said(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        api = Api(c1)
        await api.upload(CONTENT)
        for name in ("chat", "small"):
            await api.push(model(name, digest=DIGEST))
        await apply(api, "small")
        answer = await apply(api, "chat", fallbacks=["small"])
        assert [each.rule for each in answer.partial_rules] == ["fallbacks = small"]
        with pytest.raises(InvalidInputError, match="small -> chat -> small"):
            await apply(api, "small", fallbacks=["chat"])
        with pytest.raises(InvalidInputError, match="'gone' is not deployed"):
            await apply(api, "chat", mirror=routing_pb2.Mirror(deployment="gone", percent=1))
        with pytest.raises(InvalidInputError, match="takes no batches"):
            await apply(api, "chat", scheduling=routing_pb2.Scheduling(priority_levels=2))
        found = await explain(api, "chat")
        assert [each.rule for each in found.rules][-1] == "fallbacks = small"
        assert found.gateway.decided_by.startswith("refused with UNAVAILABLE: model chat 1.0.0: 0 of 1 replicas ready")
        with pytest.raises(NotFoundError, match="'gone' is not deployed"):
            await explain(api, "gone")


async def test_two_policies_at_once_make_no_circle(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as c1:
        api = Api(c1)
        await api.upload(CONTENT)
        for name in ("a", "b"):
            await api.push(model(name, digest=DIGEST))
            await apply(api, name)
        both = await asyncio.gather(
            apply(api, "a", fallbacks=["b"]), apply(api, "b", fallbacks=["a"]), return_exceptions=True
        )
        assert sum(isinstance(each, BaseException) for each in both) == 1, both


async def test_weights_follow_what_agents_report(
    etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "AdaptiveController", functools.partial(AdaptiveController, step_s=0.2))
    async with coordinator(etcd, tmp_path) as c1:
        api = Api(c1)
        await api.upload(CONTENT)
        await api.push(model("m", digest=DIGEST))
        agents = [agent(c1.settings.address, name, name) for name in ("fast", "slow")]
        for each in agents:
            await each.join()
        adaptive = routing_pb2.Balancer(latency_adaptive=routing_pb2.LatencyAdaptive())
        await apply(api, "m", replicas=2, balancer=adaptive)
        beats = [asyncio.create_task(_beat(each, ms)) for each, ms in zip(agents, (10, 40), strict=True)]

        async def adapted() -> bool:
            (share,) = (await explain(api, "m")).gateway.shares
            shares = {each.node: each.percent for each in share.endpoints}
            return shares.get("fast", 0) > 70 and all("ms is typical" in each.reason for each in share.endpoints)

        await eventually(adapted, what="the fast node has most of the requests")
        await apply(api, "m", replicas=2)
        etcd_has = functools.partial(_weights_gone, api)
        await eventually(etcd_has, what="without the balancer, shares are equal")
        for beat in beats:
            beat.cancel()
        await asyncio.gather(*beats, return_exceptions=True)
        for each in agents:
            await each.vanish()


async def _weights_gone(api: Api) -> bool:
    (share,) = (await explain(api, "m")).gateway.shares
    return [each.percent for each in share.endpoints] == [50, 50]


async def _beat(node: Agent, mean_ms: int) -> None:
    """Heartbeats of a node whose requests take so long."""
    node.beating = False
    done = 0
    while True:
        done += 20
        loaded = membership_pb2.ModelLoad(
            name="m", version="1.0.0", successes=done, success_ns=done * mean_ms * 1_000_000
        )
        heartbeat = membership_pb2.Heartbeat(load=membership_pb2.Load(models=[loaded]))
        node.outgoing.put_nowait(membership_pb2.AgentMessage(heartbeat=heartbeat))
        await asyncio.sleep(0.05)

"""Deploying: calls to the routing service, and the judgement of how a deployment fares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from meshkit.errors import AimeshError, DeadlineError, ExhaustedError, NotFoundError, PreconditionError
from meshkit.grpc_errors import from_call
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.plain import enum_name
from tools.cli.registry import get_version
from tools.cli.target import Mesh

SETTLE_S = 2.0
"""How long a bad picture must stay the same before it is final: a failed replica may be placed elsewhere."""
POLL_S = 0.2
_MODEL_STATE = membership_pb2.ModelState.DESCRIPTOR


@dataclass(frozen=True)
class Fare:
    """How one version of a deployment fares."""

    target: routing_pb2.TargetStatus
    busy: dict[str, str] = field(default_factory=dict)
    """What is being done, by node that is still at it."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why it failed, by node."""

    @property
    def ready(self) -> bool:
        """Whether all that was asked for answers."""
        return self.target.ready >= self.target.wanted

    @property
    def missing(self) -> int:
        """Replicas that found no place."""
        return max(0, self.target.wanted - len(self.target.nodes))

    @property
    def stuck(self) -> bool:
        """Whether waiting longer promises nothing."""
        return not self.busy and bool(self.failed or self.target.rejections)


async def apply(
    mesh: Mesh, name: str, version: str, replicas: int, policy: routing_pb2.RoutePolicy | None = None, alias: str = ""
) -> routing_pb2.ApplyDeploymentResponse:
    """Deploys one version alone under its name: the one named, what an alias stands for, or the newest.

    Without a policy, the route's stays.
    """
    if not alias:
        version = version or (await get_version(mesh, name, "")).version
    target = routing_pb2.Target(version=version, alias=alias, replicas=replicas, weight=100)
    async with connect(mesh, "coordinator") as channel:
        routing = routing_pb2_grpc.RoutingServiceStub(channel)
        policy = policy if policy is not None else await _policy(routing, name)
        deployment = routing_pb2.Deployment(name=name, targets=[target], policy=policy)
        request = routing_pb2.ApplyDeploymentRequest(deployment=deployment)
        return await routing.ApplyDeployment(request, timeout=CALL_TIMEOUT_S)


async def remove(mesh: Mesh, name: str) -> None:
    """Removes a deployment. Raises NotFoundError."""
    async with connect(mesh, "coordinator") as channel:
        routing = routing_pb2_grpc.RoutingServiceStub(channel)
        await routing.DeleteDeployment(routing_pb2.DeleteDeploymentRequest(name=name), timeout=CALL_TIMEOUT_S)


async def wait_placed(
    mesh: Mesh, name: str, version: str, timeout_s: float, tell: Callable[[Fare], None]
) -> routing_pb2.TargetStatus:
    """Waits until all replicas answer; `tell` hears how it goes.

    Raises PreconditionError when a replica failed, ExhaustedError when one found no place, DeadlineError.
    """
    async with connect(mesh, "coordinator") as channel:
        cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        deadline = time.monotonic() + timeout_s
        stuck_since: float | None = None
        while True:
            answer = await cluster.GetStatus(cluster_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
            fare, now = judge(answer.status, name, version), time.monotonic()
            tell(fare)
            if fare.ready and await _routed(mesh, name):
                return fare.target
            stuck_since = (stuck_since or now) if fare.stuck else None
            if stuck_since is not None and now - stuck_since > SETTLE_S:
                raise explain(name, fare)
            if now > deadline:
                raise DeadlineError(
                    f"{name}:{version} has {fare.target.ready} of {fare.target.wanted} replicas ready "
                    f"after {timeout_s:g} s{_listed(fare.busy)}",
                    hint="it goes on; see: aimesh status --watch",
                )
            await asyncio.sleep(POLL_S)


def judge(status: cluster_pb2.Status, name: str, version: str) -> Fare:
    """How a version fares in the cluster's state. Pure."""
    target = routing_pb2.TargetStatus(version=version, wanted=1)
    for entry in status.deployments:
        if entry.deployment.name == name:
            target = next((one for one in entry.targets if one.version == version), target)
    busy, failed = {}, {}
    reports = {entry.node.id: entry.node.report for entry in status.nodes}
    for node in target.nodes:
        state, message = _on_node(reports.get(node), name, version)
        if state == "FAILED":
            failed[node] = message
        elif state != "READY":
            busy[node] = message
    failed |= {one.node: one.message for one in target.rejections if one.limit == "load_failed"}
    return Fare(target, busy, failed)


def explain(name: str, fare: Fare) -> AimeshError:
    """Why a version that is stuck is not all there."""
    target = fare.target
    had = f"{name}:{target.version} has {target.ready} of {target.wanted} replicas ready"
    if fare.failed:
        reasons = "; ".join(f"{node}: {message}" for node, message in sorted(fare.failed.items()))
        return PreconditionError(
            f"{had}; it failed on {reasons}", hint="see the log of that node's agent", reason="LOAD_FAILED"
        )
    return no_place(name, target)


def no_place(name: str, target: routing_pb2.TargetStatus) -> ExhaustedError:
    """Why replicas found no place; those that did stay."""
    reasons = "; ".join(f"{one.node}: {one.message}" for one in target.rejections)
    return ExhaustedError(
        f"{name}:{target.version}: {len(target.nodes)} of {target.wanted} replicas found a place"
        + (f". {reasons}" if reasons else ""),
        hint="those that did stay; add nodes, undeploy other models, or ask for fewer replicas",
        reason="NO_CAPACITY",
    )


def describe(fare: Fare) -> str:
    """One line of progress."""
    return f"{counted(fare.target, 'ready')}{_listed(fare.busy)}{_listed(fare.failed)}"


def counted(target: routing_pb2.TargetStatus, what: str) -> str:
    """How many of the replicas asked for answer; those that a smaller deployment gives up still do for a moment."""
    more = f", {target.ready - target.wanted} more leaving" if target.ready > target.wanted else ""
    return f"{min(target.ready, target.wanted)} of {target.wanted} {what}{more}"


def _on_node(report: membership_pb2.ModelReport | None, name: str, version: str) -> tuple[str, str]:
    for model in report.models if report else ():
        if (model.name, model.version) == (name, version):
            state = enum_name(_MODEL_STATE, model.state)
            if state == "FAILED":
                return state, model.message
            done = f" {model.bytes_done / model.bytes_total:.0%}" if state == "FETCHING" and model.bytes_total else ""
            return state, state.lower() + done
    return "ASSIGNED", "assigned"


def _listed(reasons: dict[str, str]) -> str:
    return "".join(f", {node} {what}" for node, what in sorted(reasons.items()))


async def _routed(mesh: Mesh, name: str) -> bool:
    """Whether requests get through the gateway, which learns of a replica some milliseconds after the coordinator."""
    if not mesh.gateway:
        return True
    async with connect(mesh, "gateway") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = await stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                return False
            raise
    return bool(answer.ready)


async def _policy(routing: routing_pb2_grpc.RoutingServiceAsyncStub, name: str) -> routing_pb2.RoutePolicy | None:
    try:
        found = await routing.GetDeployment(routing_pb2.GetDeploymentRequest(name=name), timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        translated = from_call(error)
        if isinstance(translated, NotFoundError):
            return None
        raise translated from None
    return found.status.deployment.policy

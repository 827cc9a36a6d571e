"""Draining a node: calls to the cluster service, and the judgement of how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from meshkit.errors import DeadlineError, ExhaustedError, NotFoundError
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.placement import POLL_S, SETTLE_S
from tools.cli.target import Mesh

_SILENT = (membership_pb2.NODE_STATE_SUSPECT, membership_pb2.NODE_STATE_DEAD)


@dataclass(frozen=True)
class Draining:
    """How far a node is."""

    node: str
    replicas: int
    """Replicas that are still placed on it."""
    unloading: tuple[str, ...]
    """name:version of what its agent still runs or unloads, with the requests in flight."""
    homeless: dict[str, tuple[routing_pb2.Rejection, ...]] = field(default_factory=dict)
    """By name:version of a replica that no other node takes: why each does not."""

    @property
    def empty(self) -> bool:
        """Whether nothing is left on it."""
        return not self.replicas and not self.unloading

    @property
    def stuck(self) -> bool:
        """Whether no replica that is left has somewhere to go."""
        return 0 < self.replicas <= len(self.homeless)

    def describe(self) -> str:
        """One line of progress."""
        parts = []
        if self.replicas:
            parts.append(f"{self.replicas} {'replica' if self.replicas == 1 else 'replicas'} to move")
        if self.homeless:
            parts.append(f"no place for {', '.join(sorted(self.homeless))}")
        if self.unloading:
            parts.append(f"still there: {', '.join(self.unloading)}")
        return ", ".join(parts) or "empty"


async def order(mesh: Mesh, node: str) -> Draining:
    """Has the node drained. Raises NotFoundError."""
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        await stub.DrainNode(cluster_pb2.DrainNodeRequest(node_id=node), timeout=CALL_TIMEOUT_S)
        answer = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
    return judge(answer.status, node)


async def take_back(mesh: Mesh, node: str) -> None:
    """Lets the node take replicas again. Raises NotFoundError."""
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        await stub.UndrainNode(cluster_pb2.UndrainNodeRequest(node_id=node), timeout=CALL_TIMEOUT_S)


async def forget(mesh: Mesh, node: str) -> None:
    """Declares a silent node dead. Raises NotFoundError, PreconditionError."""
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        await stub.ForgetNode(cluster_pb2.ForgetNodeRequest(node_id=node), timeout=CALL_TIMEOUT_S)


async def wait_empty(mesh: Mesh, node: str, timeout_s: float, tell: Callable[[Draining], None]) -> Draining:
    """Waits until the node is empty; `tell` hears how it goes.

    Raises ExhaustedError when replicas have nowhere to go, DeadlineError, NotFoundError when the node has left.
    """
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        deadline = time.monotonic() + timeout_s
        stuck_since: float | None = None
        while True:
            answer = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
            draining, now = judge(answer.status, node), time.monotonic()
            tell(draining)
            if draining.empty:
                return draining
            stuck_since = (stuck_since or now) if draining.stuck else None
            if stuck_since is not None and now - stuck_since > SETTLE_S:
                raise _nowhere(draining)
            if now > deadline:
                raise DeadlineError(
                    f"{node} is not empty after {timeout_s:g} s: {draining.describe()}",
                    hint="it goes on; see: aimesh status --watch",
                )
            await asyncio.sleep(POLL_S)


def judge(status: cluster_pb2.Status, node: str) -> Draining:
    """How far a node is in the cluster's state. Pure. Raises NotFoundError."""
    entry = next((entry for entry in status.nodes if entry.node.id == node), None)
    if entry is None:
        raise NotFoundError(f"there is no node {node!r} any more", hint="see: aimesh status", reason="NODE_NOT_FOUND")
    homeless = {
        f"{deployment.deployment.name}:{target.version}": others
        for deployment in status.deployments
        for target in deployment.targets
        if node in target.nodes and (others := tuple(each for each in target.rejections if each.node != node))
    }
    # A silent agent says nothing of what it unloads.
    models = () if entry.node.state in _SILENT else entry.node.report.models
    return Draining(node, entry.replicas, tuple(f"{model.name}:{model.version}" for model in models), homeless)


def draining_json(draining: Draining) -> dict[str, object]:
    """The documented shape of `aimesh drain --json`."""
    return {
        "node": draining.node,
        "empty": draining.empty,
        "replicas": draining.replicas,
        "unloading": list(draining.unloading),
        "homeless": sorted(draining.homeless),
    }


def _nowhere(draining: Draining) -> ExhaustedError:
    reasons = "; ".join(
        f"{name}: " + ", ".join(f"{one.node}: {one.message}" for one in rejections)
        for name, rejections in sorted(draining.homeless.items())
    )
    return ExhaustedError(
        f"{draining.node} keeps {', '.join(sorted(draining.homeless))}: no other node takes it. {reasons}",
        hint="they stay and serve until there is room: add nodes, undeploy other models, "
        f"or go back: aimesh undrain {draining.node}",
        reason="NO_CAPACITY",
    )

"""ClusterService: the state of the whole mesh, for people and their tools, and what operators do to nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from coordinator.api.nodes import NodeOrders
from coordinator.api.routing import deployment_statuses
from coordinator.loads import ByNode, Loads
from coordinator.mirror import Mirror
from coordinator.placing import placed
from coordinator.sessions import Sessions
from coordinator.state import State
from coordinator.xds.loads import GatewayLoads
from coordinator.xds.server import XdsServer

PACE_S = 0.5
"""Least time between two states of one watch; also how often loads, which are no change, are shown anew."""
_ALIVE = (membership_pb2.NODE_STATE_JOINING, membership_pb2.NODE_STATE_READY)


@dataclass
class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Serves aimesh.cluster.v1 from the mirror and from what this coordinator alone knows."""

    mirror: Mirror
    sessions: Sessions
    loads: Loads
    orders: NodeOrders
    etcd_endpoints: Sequence[str]
    xds: XdsServer
    gateway_loads: GatewayLoads

    async def GetStatus(self, request: cluster_pb2.GetStatusRequest, context: Any) -> cluster_pb2.GetStatusResponse:  # noqa: N802
        """The state at this moment."""
        return cluster_pb2.GetStatusResponse(status=await self._status())

    async def WatchStatus(  # noqa: N802
        self, request: cluster_pb2.WatchStatusRequest, context: Any
    ) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        """The state now and on each change."""
        last: cluster_pb2.Status | None = None
        while True:
            status = await self._status()
            if status != last:
                yield cluster_pb2.WatchStatusResponse(status=status)
                last = status
            await asyncio.sleep(PACE_S)

    async def DrainNode(self, request: cluster_pb2.DrainNodeRequest, context: Any) -> cluster_pb2.DrainNodeResponse:  # noqa: N802
        """Has a node emptied; see cluster.proto."""
        await self.orders.drain(request.node_id)
        return cluster_pb2.DrainNodeResponse()

    async def UndrainNode(  # noqa: N802
        self, request: cluster_pb2.UndrainNodeRequest, context: Any
    ) -> cluster_pb2.UndrainNodeResponse:
        """Lets a node take replicas again."""
        await self.orders.undrain(request.node_id)
        return cluster_pb2.UndrainNodeResponse()

    async def ForgetNode(self, request: cluster_pb2.ForgetNodeRequest, context: Any) -> cluster_pb2.ForgetNodeResponse:  # noqa: N802
        """Declares a silent node dead for good."""
        await self.orders.forget(request.node_id)
        return cluster_pb2.ForgetNodeResponse()

    async def ListLoads(self, request: cluster_pb2.ListLoadsRequest, context: Any) -> cluster_pb2.ListLoadsResponse:  # noqa: N802
        """The loads of this coordinator's sessions."""
        return cluster_pb2.ListLoadsResponse(loads=self.loads.own())

    async def ListUnacknowledged(  # noqa: N802
        self, request: cluster_pb2.ListUnacknowledgedRequest, context: Any
    ) -> cluster_pb2.ListUnacknowledgedResponse:
        """Those of this coordinator's clients that may not have a deployment's configuration yet."""
        return cluster_pb2.ListUnacknowledgedResponse(clients=self.xds.unacknowledged(request.name, request.revision))

    async def ListGatewayCounts(  # noqa: N802
        self, request: cluster_pb2.ListGatewayCountsRequest, context: Any
    ) -> cluster_pb2.ListGatewayCountsResponse:
        """What the gateways that report to this coordinator counted."""
        counts = [
            cluster_pb2.GatewayCount(name=name, version=version, **counted._asdict())
            for (name, version), counted in sorted(self.gateway_loads.gateway_counts().items())
        ]
        return cluster_pb2.ListGatewayCountsResponse(counts=counts)

    async def _status(self) -> cluster_pb2.Status:
        loads = await self.loads()
        state = self.mirror.state
        await placed(state)  # what the deployments' status asks for, without keeping everybody waiting
        status = cluster_pb2.Status(
            revision=state.revision,
            coordinators=_coordinators(state),
            etcd_endpoints=self.etcd_endpoints,
            nodes=[self._node(state, node, loads) for node in state.known.values()],
            deployments=deployment_statuses(state),
            xds_clients=self.xds.clients(),
            frozen=self.mirror.frozen,
            braked=state.braked,
        )
        if behind_s := self.mirror.behind_s():
            status.behind.FromMilliseconds(round(behind_s * 1000))
        return status

    def _node(self, state: State, known: membership_pb2.Node, loads: ByNode) -> cluster_pb2.NodeStatus:
        node = membership_pb2.Node()
        node.CopyFrom(known)
        session = self.sessions.held().get(node.id)
        if session is not None and session.node.epoch == node.epoch:
            node.report.CopyFrom(session.report)
        drained = node.id in state.drains
        if node.id not in state.nodes and node.state != membership_pb2.NODE_STATE_DEAD:
            node.state = membership_pb2.NODE_STATE_SUSPECT
        elif drained and node.state in _ALIVE:
            node.state = membership_pb2.NODE_STATE_DRAINING
        load = loads.get(node.id) if node.id in state.nodes else None
        replicas = len(state.assignments.get(node.id, ()))
        return cluster_pb2.NodeStatus(node=node, load=load, drained=drained, replicas=replicas)


def _coordinators(state: State) -> list[cluster_pb2.Coordinator]:
    found = []
    for key, coordinator in sorted(state.coordinators.items()):
        shown = cluster_pb2.Coordinator()
        shown.CopyFrom(coordinator)
        shown.leader = key == state.leader
        found.append(shown)
    return found

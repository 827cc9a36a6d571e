"""ClusterService: the state of the whole mesh, for people and their tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from coordinator.api.routing import deployment_statuses
from coordinator.mirror import Mirror
from coordinator.sessions import Sessions
from coordinator.state import State

PACE_S = 0.5
"""Least time between two states of one watch; also how often loads, which are no change, are shown anew."""


@dataclass
class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Serves aimesh.cluster.v1 from the mirror and from what this coordinator alone knows."""

    mirror: Mirror
    sessions: Sessions
    etcd_endpoints: Sequence[str]
    xds_clients: Callable[[], Sequence[cluster_pb2.XdsClient]]
    absent: Callable[[], tuple[str, ...]]

    async def GetStatus(self, request: cluster_pb2.GetStatusRequest, context: Any) -> cluster_pb2.GetStatusResponse:  # noqa: N802
        """The state at this moment."""
        return cluster_pb2.GetStatusResponse(status=self._status())

    async def WatchStatus(  # noqa: N802
        self, request: cluster_pb2.WatchStatusRequest, context: Any
    ) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        """The state now and on each change."""
        last: cluster_pb2.Status | None = None
        while True:
            status = self._status()
            if status != last:
                yield cluster_pb2.WatchStatusResponse(status=status)
                last = status
            await asyncio.sleep(PACE_S)

    def _status(self) -> cluster_pb2.Status:
        state = self.mirror.state
        return cluster_pb2.Status(
            revision=state.revision,
            coordinators=_coordinators(state),
            etcd_endpoints=self.etcd_endpoints,
            nodes=[self._node(state, key) for key in sorted({*state.members, *state.nodes})],
            deployments=deployment_statuses(state, self.absent()),
            xds_clients=self.xds_clients(),
            frozen=self.mirror.frozen,
        )

    def _node(self, state: State, node_id: str) -> cluster_pb2.NodeStatus:
        if node_id not in state.nodes:
            return cluster_pb2.NodeStatus(node=state.members[node_id])
        node = membership_pb2.Node()
        node.CopyFrom(state.nodes[node_id])
        session = self.sessions.held().get(node_id)
        if session is None:
            return cluster_pb2.NodeStatus(node=node)
        node.report.CopyFrom(session.report)
        return cluster_pb2.NodeStatus(node=node, load=session.load)


def _coordinators(state: State) -> list[cluster_pb2.Coordinator]:
    found = []
    for key, coordinator in sorted(state.coordinators.items()):
        shown = cluster_pb2.Coordinator()
        shown.CopyFrom(coordinator)
        shown.leader = key == state.leader
        found.append(shown)
    return found

"""One connected xDS client."""

from __future__ import annotations

import asyncio

import structlog
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from aimesh.cluster.v1 import cluster_pb2
from coordinator.xds.pending import unacknowledged
from coordinator.xds.snapshot import SHORT_NAMES, Snapshot
from coordinator.xds.subscriptions import Response, StreamState, Subscription

log = structlog.get_logger()

PATIENCE_S = 5.0
"""How long routes wait for a client to take the clusters that they point at."""


class ClientStream:
    """What a client has, and a bell that is rung when it may need something."""

    def __init__(self, number: int, *, may_be_gateway: bool) -> None:
        self.number = number
        self._may_be_gateway = may_be_gateway
        self.node: base_pb2.Node | None = None
        self.state = StreamState()
        self.ended = False
        self._bell = asyncio.Event()

    @property
    def id(self) -> str:
        """The client's own id and the number of its stream, which tells two programs with one id apart."""
        return f"{self.node.id if self.node else ''}#{self.number}"

    @property
    def user_agent(self) -> str:
        """What it calls itself."""
        node = self.node or base_pb2.Node()
        return " ".join(part for part in (node.user_agent_name, node.user_agent_version) if part)

    @property
    def is_gateway(self) -> bool:
        """Whether it is Envoy, and may be; otherwise it gets what a gRPC program gets."""
        return self._may_be_gateway and self.node is not None and self.node.user_agent_name == "envoy"

    def ring(self) -> None:
        """Makes `next_response` look again."""
        self._bell.set()

    def end(self) -> None:
        """Makes `next_response` return None."""
        self.ended = True
        self.ring()

    def take(self, request: discovery_pb2.DiscoveryRequest) -> None:
        """Takes a request in."""
        if self.node is None:  # clients say who they are in their first request only
            self.node = request.node
        self.state.take(request)
        if request.HasField("error_detail"):
            log.warning("xds.refused", client=self.id, type=request.type_url, why=request.error_detail.message)
        self.ring()

    async def next_response(self, newest: SnapshotHolder) -> Response | None:
        """Waits for the next thing to send; None at the stream's end.

        However many snapshots pass while the client is slow, only the newest is looked at: nothing queues up.
        """
        patient = True
        while not self.ended:
            self._bell.clear()
            snapshot = newest.snapshot and newest.snapshot.view(gateway=self.is_gateway)
            if snapshot is not None:
                response = self.state.next_response(snapshot, patient=patient)
                if response is not None:
                    return response
            patient = await self._rung(snapshot)
        return None

    async def _rung(self, snapshot: Snapshot | None) -> bool:
        """Waits for the bell; False when something was held back for too long instead."""
        held_back = snapshot is not None and self.state.held_back(snapshot)
        try:
            async with asyncio.timeout(PATIENCE_S if held_back else None):
                await self._bell.wait()
        except TimeoutError:
            return False
        return True

    def describe(self) -> cluster_pb2.XdsClient:
        """The client for status."""
        return cluster_pb2.XdsClient(
            id=self.id,
            user_agent=self.user_agent,
            subscriptions=[_describe(SHORT_NAMES[type_url], sub) for type_url, sub in sorted(self.state.types.items())],
        )

    def unacknowledged(self, newest: Snapshot, name: str, revision: int) -> list[cluster_pb2.Unacknowledged]:
        """What of a deployment's configuration as of `revision` the client may not have; `newest` is no older."""
        view = newest.view(gateway=self.is_gateway)
        return [
            cluster_pb2.Unacknowledged(client=self.id, user_agent=self.user_agent, type=short_name, why=why)
            for short_name, why in unacknowledged(self.state, view, name, revision)
        ]


class SnapshotHolder:
    """The newest snapshot; None before the first."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None


def _describe(short_name: str, sub: Subscription) -> cluster_pb2.XdsSubscription:
    return cluster_pb2.XdsSubscription(
        type=short_name,
        names=sorted(sub.names),
        sent_version=sub.sent_version,
        acked_version=sub.acked_version,
        nack=sub.nack,
    )

"""The xDS server: state-of-the-world ADS. A client is sent what it asked for when that changes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from envoy.service.discovery.v3 import ads_pb2, discovery_pb2

from aimesh.cluster.v1 import cluster_pb2
from coordinator.xds.snapshot import SHORT_NAMES, Snapshot
from coordinator.xds.stream import ClientStream, SnapshotHolder
from coordinator.xds.subscriptions import ALL, Response, Watched
from coordinator.xds.wire import serialize_response
from meshkit.auth import current_principal

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[discovery_pb2.DiscoveryRequest, Response]
log = structlog.get_logger()

SERVICE_NAME: str = ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"].full_name


class XdsServer:
    """Serves the newest published snapshot. Every method belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._newest = SnapshotHolder()
        self._streams: dict[int, ClientStream] = {}
        self._watchers: dict[Watched, set[ClientStream]] = {}
        self._streams_made = 0
        self._closed = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=serialize_response,
        )
        methods = {"StreamAggregatedResources": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, methods),))

    def publish(self, snapshot: Snapshot) -> None:
        """Makes this the snapshot and wakes the clients that it concerns; cheap when nothing changed for anyone.

        Until the first one clients get no answer: a coordinator that knows nothing yet must not say nothing exists.
        """
        before, self._newest.snapshot = self._newest.snapshot, snapshot
        concerned = set(self._streams.values()) if before is None else self._concerned(before, snapshot)
        for stream in concerned:
            stream.ring()

    def clients(self) -> list[cluster_pb2.XdsClient]:
        """Connected clients with what they have, in the order of arrival."""
        return [stream.describe() for stream in self._streams.values() if stream.node is not None]

    def unacknowledged(self, name: str, revision: int) -> list[cluster_pb2.Unacknowledged]:
        """What connected clients may not have of a deployment's configuration as of an etcd revision; see pending.py.

        gRPC's own client acknowledges clusters and endpoints before it uses them: nothing later is known here.
        """
        newest = self._newest.snapshot
        if newest is None or int(newest.version) < revision:
            return [cluster_pb2.Unacknowledged(why=f"this coordinator has not published revision {revision} yet")]
        return [
            missing for stream in self._streams.values() for missing in stream.unacknowledged(newest, name, revision)
        ]

    def close(self) -> None:
        """Ends every stream. Clients go on with what they have and look for another coordinator."""
        self._closed = True
        for stream in self._streams.values():
            stream.end()

    async def _serve(self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Context) -> None:
        """One client's stream: one task takes in what it says, this one writes what it should have."""
        stream = self._open()
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(stream, requests))
                while (response := await stream.next_response(self._newest)) is not None:
                    await context.write(response)
                reader.cancel()
        finally:
            self._forget(stream)

    async def _read(self, stream: ClientStream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]) -> None:
        async for request in requests:
            if request.type_url not in SHORT_NAMES:
                log.warning("xds.unknown_type", client=stream.id, type=request.type_url)
                continue
            before = stream.state.watched(request.type_url)
            stream.take(request)
            self._reindex(stream, before, stream.state.watched(request.type_url))
        stream.end()

    def _open(self) -> ClientStream:
        self._streams_made += 1
        identity = current_principal().identity  # None without TLS, where anyone may do everything
        trusted = identity is None or identity.role == "gateway"
        stream = self._streams[self._streams_made] = ClientStream(self._streams_made, may_be_gateway=trusted)
        if self._closed:
            stream.end()
        return stream

    def _forget(self, stream: ClientStream) -> None:
        del self._streams[stream.number]
        for type_url in stream.state.types:
            self._reindex(stream, stream.state.watched(type_url), frozenset())

    def _reindex(self, stream: ClientStream, before: frozenset[Watched], after: frozenset[Watched]) -> None:
        for watched in after - before:
            self._watchers.setdefault(watched, set()).add(stream)
        for watched in before - after:
            self._watchers[watched].discard(stream)
            if not self._watchers[watched]:
                del self._watchers[watched]

    def _concerned(self, before: Snapshot, after: Snapshot) -> set[ClientStream]:
        """The clients that watch something that was added, changed or removed for their kind of client."""
        planes = [(before.view(gateway=kind), after.view(gateway=kind)) for kind in (False, True)]
        if before.gateways is None and after.gateways is None:
            del planes[1]
        found: set[ClientStream] = set()
        for watched, streams in self._watchers.items():
            if not streams <= found and any(_differs(watched, old, new) for old, new in planes):
                found |= streams
        return found


def _differs(watched: Watched, before: Snapshot, after: Snapshot) -> bool:
    type_url, name = watched
    old, new = before.resources[type_url], after.resources[type_url]
    return old is not new and (old != new if name == ALL else old.get(name) != new.get(name))

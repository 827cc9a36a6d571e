"""What gateways saw: Envoy's load reports (LRS), summed up for each version of a deployment that has a rollout.

Envoy is asked for the clusters of such versions only, so a mesh at rest pays nothing. It counts what became of each try
of a request, copies included, and counts as failed what it also leaves replicas out for: HTTP 5xx, gRPC codes that
stand for them, connections that broke. Source: Envoy documentation, "Load Reporting Service (LRS)".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import grpc.aio
from envoy.config.endpoint.v3 import load_report_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from aimesh.rollout.v1 import rollout_pb2
from coordinator.state import State, VersionKey
from coordinator.xds.clusters import grpc_cluster, http_cluster

SERVICE_NAME: str = lrs_pb2.DESCRIPTOR.services_by_name["LoadReportingService"].full_name
INTERVAL_S = 1
"""How often a gateway reports, while it is asked to."""
_REST_S = 24 * 3600
"""How often it does while nothing is asked for: its timer cannot be stopped, only set anew."""
_OVER = (rollout_pb2.ROLLOUT_STATE_SUCCEEDED, rollout_pb2.ROLLOUT_STATE_ROLLED_BACK)


class Counted(NamedTuple):
    """Requests that ended, and those of them that failed: see GatewayCount in cluster.proto."""

    requests: int = 0
    errors: int = 0


@dataclass(eq=False)
class _Stream:
    """One gateway's."""

    told: frozenset[str] = frozenset()
    """The clusters that it was asked for last."""
    bell: asyncio.Event = field(default_factory=asyncio.Event)


class GatewayLoads:
    """Serves load reporting and keeps the counts. Every method belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._counts: dict[VersionKey, Counted] = {}
        self._clusters: dict[str, VersionKey] = {}
        """What gateways are asked for, and whose each cluster is."""
        self._streams: set[_Stream] = set()
        self._closed = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=lrs_pb2.LoadStatsRequest.FromString,
            response_serializer=lrs_pb2.LoadStatsResponse.SerializeToString,
        )
        methods = {"StreamLoadStats": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, methods),))

    def ask(self, versions: frozenset[VersionKey]) -> None:
        """From now on these versions are counted, and only these; those that were stay as they are."""
        if versions == self._counts.keys():
            return
        self._counts = {key: self._counts.get(key, Counted()) for key in sorted(versions)}
        self._clusters = {name: key for key in versions for name in (grpc_cluster(*key), http_cluster(*key))}
        self._ring()

    def gateway_counts(self) -> Mapping[VersionKey, Counted]:
        """Of each version that is asked for, since it is: only differences mean something. They begin at 0 anew when
        this process does."""
        return dict(self._counts)

    def close(self) -> None:
        """Ends every stream; gateways look for another coordinator."""
        self._closed = True
        self._ring()

    async def _serve(self, requests: AsyncIterator[lrs_pb2.LoadStatsRequest], context: Any) -> None:
        """One gateway's stream: one task takes its reports in, this one asks for what is wanted."""
        stream = _Stream()
        self._streams.add(stream)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(requests))
                reader.add_done_callback(lambda _: stream.bell.set())
                while not (self._closed or reader.done()):
                    stream.bell.clear()
                    if stream.told != self._clusters.keys():
                        stream.told = frozenset(self._clusters)
                        await context.write(_asking(stream.told))
                    await stream.bell.wait()
                reader.cancel()
        finally:
            self._streams.discard(stream)

    async def _read(self, requests: AsyncIterator[lrs_pb2.LoadStatsRequest]) -> None:
        async for request in requests:
            for cluster in request.cluster_stats:
                if (key := self._clusters.get(cluster.cluster_name)) is not None:
                    self._counts[key] = _plus(self._counts[key], cluster.upstream_locality_stats)

    def _ring(self) -> None:
        for stream in self._streams:
            stream.bell.set()


def rolled_out(state: State) -> frozenset[VersionKey]:
    """The targets of every deployment whose rollout is not over."""
    return frozenset(
        (name, target.version)
        for name, rollout in state.rollouts.items()
        if rollout.state not in _OVER and name in state.deployments
        for target in state.deployments[name].targets
    )


def _plus(counted: Counted, found: Iterable[load_report_pb2.UpstreamLocalityStats]) -> Counted:
    for each in found:
        ended = each.total_successful_requests + each.total_error_requests
        counted = Counted(counted.requests + ended, counted.errors + each.total_error_requests)
    return counted


def _asking(clusters: frozenset[str]) -> lrs_pb2.LoadStatsResponse:
    response = lrs_pb2.LoadStatsResponse(clusters=sorted(clusters))
    response.load_reporting_interval.seconds = INTERVAL_S if clusters else _REST_S
    return response

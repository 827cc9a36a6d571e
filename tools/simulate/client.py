"""A simulated xDS client: state-of-the-world ADS for one name, in the order in which gRPC's own client asks."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from coordinator.xds.snapshot import CDS, EDS, LDS, RDS
from meshkit.backoff import Backoff
from meshkit.channel import aio_channel
from tools.simulate.agent import OWN_CONNECTION
from tools.simulate.changes import Endpoints

Acknowledged = Callable[[int, str, Endpoints, float], None]
"""(client, model, endpoints, moment)."""
SEND_TIMEOUT_S = 10.0
_CACHED = 8192


@dataclass
class Traffic:
    """What became of all clients' streams together."""

    streams_lost: Counter[str] = field(default_factory=Counter)
    """Streams that ended though nobody meant them to, by reason."""


@dataclass
class _Type:
    """One resource type: the names asked for, and the last response."""

    names: frozenset[str]
    version: str = ""
    nonce: str = ""


@dataclass
class Client:
    """One client of one model. `run` is its life."""

    number: int
    model: str
    coordinators: tuple[str, ...]
    """In the order in which they are tried."""
    traffic: Traffic
    acknowledged: Acknowledged
    _types: dict[str, _Type] = field(default_factory=dict, init=False)

    async def run(self) -> None:
        """Keeps a stream to one coordinator, and goes to the next when that ends, until cancelled."""
        backoff, attempt = Backoff(first_s=0.1, most_s=2.0), 0
        while True:
            address = self.coordinators[attempt % len(self.coordinators)]
            try:
                async with aio_channel(address, options=OWN_CONNECTION) as channel:
                    await self._stream(ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources())
                self.traffic.streams_lost["the coordinator ended it"] += 1
            except grpc.aio.AioRpcError as error:
                self.traffic.streams_lost[f"{error.code().name}: {error.details()}"] += 1
            except TimeoutError:
                self.traffic.streams_lost[f"the coordinator took no request for {SEND_TIMEOUT_S:g} s"] += 1
            attempt += 1
            await asyncio.sleep(backoff.next_delay())

    async def _stream(self, call: Any) -> None:
        self._types = {}
        await self._ask(call, LDS, frozenset({self.model}))
        while isinstance(response := await call.read(), discovery_pb2.DiscoveryResponse):
            await self._take(call, response)

    async def _take(self, call: Any, response: discovery_pb2.DiscoveryResponse) -> None:
        """Acknowledges a response and asks for what it points at."""
        kind = self._types[response.type_url]
        kind.version, kind.nonce = response.version_info, response.nonce
        await self._request(call, response.type_url, kind)
        wanted: dict[str, frozenset[str]] = {}
        for resource in response.resources:
            if response.type_url == EDS:
                endpoints = _endpoints(resource.value)
                self.acknowledged(self.number, self.model, endpoints, time.monotonic())
            else:
                type_url, names = _points_at(response.type_url, resource.value)
                wanted[type_url] = wanted.get(type_url, frozenset()) | names
        for type_url, names in wanted.items():
            await self._ask(call, type_url, names)

    async def _ask(self, call: Any, type_url: str, names: frozenset[str]) -> None:
        known = self._types.setdefault(type_url, _Type(frozenset()))
        if known.names != names:
            known.names = names
            await self._request(call, type_url, known)

    async def _request(self, call: Any, type_url: str, kind: _Type) -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url,
            resource_names=sorted(kind.names),
            version_info=kind.version,
            response_nonce=kind.nonce,
        )
        if type_url == LDS and not kind.nonce:  # the stream's first
            request.node.id = f"aimesh-simulate/{self.number}"
            request.node.user_agent_name = "aimesh simulate"
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await call.write(request)


@functools.lru_cache(maxsize=_CACHED)
def _points_at(type_url: str, value: bytes) -> tuple[str, frozenset[str]]:
    """The type and the names that a resource makes a client ask for; cached, since many clients get the same bytes."""
    if type_url == LDS:
        manager = hcm_pb2.HttpConnectionManager()
        listener_pb2.Listener.FromString(value).api_listener.api_listener.Unpack(manager)
        return RDS, frozenset({manager.rds.route_config_name} - {""})
    if type_url == RDS:
        return CDS, _clusters(route_pb2.RouteConfiguration.FromString(value))
    return EDS, frozenset({cluster_pb2.Cluster.FromString(value).name})


def _clusters(routes: route_pb2.RouteConfiguration) -> frozenset[str]:
    actions = [route.route for host in routes.virtual_hosts for route in host.routes]
    weighted = {each.name for action in actions for each in action.weighted_clusters.clusters}
    return frozenset(weighted | {action.cluster for action in actions} - {""})


@functools.lru_cache(maxsize=_CACHED)
def _endpoints(value: bytes) -> Endpoints:
    """The nodes in an EDS resource: the mesh makes each a locality of its own, named after it."""
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(value)
    return frozenset(each.locality.region for each in assignment.endpoints if each.lb_endpoints)

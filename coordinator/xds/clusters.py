"""Clusters and their endpoints. gRPC clients and Envoy share those that speak gRPC."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import duration_pb2, wrappers_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, VersionKey, routable
from coordinator.xds.balancing import balance, eject, limit, unlimited
from coordinator.xds.elsewhere import borrowed, borrowed_cluster
from coordinator.xds.memo import kept
from coordinator.xds.readiness import Serving, ip_of
from coordinator.xds.rename import renaming_filters
from coordinator.xds.snapshot import over_ads, pack, packed_any
from coordinator.xds.weights import node_shares
from meshkit.channel import MAX_MESSAGE_BYTES

ANY_NODE = "any"
ANY_NODE_HTTP = "any/http"
COORDINATORS = "coordinators"


class Weighted(NamedTuple):
    """An endpoint with its share."""

    owner: str
    """The node's or the coordinator's id, which names the locality."""
    ip: str
    port: int
    weight: int = 1


_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MAX_STREAMS = 1 << 16


def grpc_cluster(name: str, version: str) -> str:
    """Name of the cluster that holds a version's KServe v2 gRPC endpoints."""
    return f"{name}/{version}"


def http_cluster(name: str, version: str) -> str:
    """Name of the cluster that holds a version's KServe v2 REST endpoints."""
    return f"{name}/{version}/http"


def clusters(state: State) -> Iterator[cluster_pb2.Cluster]:
    """One gRPC and one REST cluster for each version of a deployment, those through which another deployment serves a
    deployment's requests, and those that belong to no model."""
    for name, version in _versions(state):
        policy = state.deployments[name].policy.SerializeToString(deterministic=True)
        for cluster, http in ((grpc_cluster(name, version), False), (http_cluster(name, version), True)):
            yield _copied(_own_cluster(cluster, policy, http=http))
    for _, deployment in sorted(state.deployments.items()):
        yield from _borrowed_clusters(state, deployment)
    yield _plain_cluster(ANY_NODE, _http2())
    yield _plain_cluster(ANY_NODE_HTTP, _http1())
    yield _plain_cluster(COORDINATORS, _http2())


def load_assignments(state: State, serving: Serving) -> Iterator[endpoint_pb2.ClusterLoadAssignment]:
    """The endpoints of every cluster that `clusters` gives, those without any included."""
    yield from (load_assignment(name, found) for name, found in endpoints(state, serving))
    yield from (every_node(serving, http=http) for http in (False, True))


def endpoints(state: State, serving: Serving) -> Iterator[tuple[str, tuple[Weighted, ...]]]:
    """(cluster, its endpoints) of every cluster that `clusters` gives, but for those of `every_node`."""
    for name, version in _versions(state):
        grpc, http = _endpoints(state, serving, state.deployments[name], version)
        yield grpc_cluster(name, version), grpc
        yield http_cluster(name, version), http
    for name, deployment in sorted(state.deployments.items()):
        for other, version in borrowed(state, deployment):
            grpc, http = _endpoints(state, serving, other, version)
            yield borrowed_cluster(name, other.name, version), grpc
            yield borrowed_cluster(name, other.name, version, http=True), http
    yield COORDINATORS, tuple(_coordinators(state))


def every_node(serving: Serving, *, http: bool) -> endpoint_pb2.ClusterLoadAssignment:
    """The endpoints of the cluster for requests that name no model."""
    if http:
        with_rest = [each for each in serving.ready if each.http_port]
        return load_assignment(ANY_NODE_HTTP, (Weighted(each.node, each.ip, each.http_port) for each in with_rest))
    return load_assignment(ANY_NODE, (Weighted(each.node, each.ip, each.grpc_port) for each in serving.ready))


def _endpoints(
    state: State, serving: Serving, deployment: routing_pb2.Deployment, version: str
) -> tuple[tuple[Weighted, ...], tuple[Weighted, ...]]:
    """(gRPC, REST) endpoints of a version."""
    found = serving.of(deployment.name, version)
    weights = [share.weight for share in node_shares(state, deployment, version, [each.node for each in found])]
    pairs = list(zip(found, weights, strict=True))
    return (
        tuple(Weighted(each.node, each.ip, each.grpc_port, weight) for each, weight in pairs),
        tuple(Weighted(each.node, each.ip, each.http_port, weight) for each, weight in pairs if each.http_port),
    )


def _borrowed_clusters(state: State, deployment: routing_pb2.Deployment) -> Iterator[cluster_pb2.Cluster]:
    for other, version in borrowed(state, deployment):
        policy = other.policy.SerializeToString(deterministic=True)
        for http in (False, True):
            yield _copied(_borrowed_cluster(deployment.name, other.name, version, policy, http=http))


def _versions(state: State) -> Iterator[VersionKey]:
    """What deployments ask for, and what still answers for them while it is being replaced."""
    for name, deployment in sorted(state.deployments.items()):
        asked = [target.version for target in deployment.targets]
        answering = [version for version, _ in routable(state, deployment)]
        yield from ((name, version) for version in dict.fromkeys([*asked, *answering]))


def _coordinators(state: State) -> Iterator[Weighted]:
    for _, coordinator in sorted(state.coordinators.items()):
        host, _, port = coordinator.address.rpartition(":")
        ip = ip_of(host.strip("[]"))
        if ip and port.isdigit():
            yield Weighted(coordinator.id, ip, int(port))


@kept
def _own_cluster(name: str, policy: bytes, *, http: bool) -> cluster_pb2.Cluster:
    """The cluster of a version, from its deployment's policy, serialized. Kept, so never changed in place."""
    options = _http1() if http else _http2()
    return _model_cluster(name, routing_pb2.RoutePolicy.FromString(policy), options)


@kept
def _borrowed_cluster(name: str, other: str, version: str, policy: bytes, *, http: bool) -> cluster_pb2.Cluster:
    """The same for requests that say `name`, from the policy of the deployment that serves them."""
    options = _http1() if http else _http2()
    options.http_filters.extend(renaming_filters(name, other, http2=not http))
    cluster = borrowed_cluster(name, other, version, http=http)
    return _model_cluster(cluster, routing_pb2.RoutePolicy.FromString(policy), options)


def _copied(kept: cluster_pb2.Cluster) -> cluster_pb2.Cluster:
    made = cluster_pb2.Cluster()
    made.CopyFrom(kept)
    return made


def _model_cluster(
    name: str, policy: routing_pb2.RoutePolicy, options: http_protocol_options_pb2.HttpProtocolOptions
) -> cluster_pb2.Cluster:
    cluster = _cluster(name, options)
    balance(cluster, policy.balancer)
    limit(cluster, policy)
    eject(cluster, policy)
    return cluster


def _plain_cluster(name: str, options: http_protocol_options_pb2.HttpProtocolOptions) -> cluster_pb2.Cluster:
    cluster = _cluster(name, options)
    balance(cluster, routing_pb2.Balancer())
    unlimited(cluster)
    return cluster


def _cluster(name: str, options: http_protocol_options_pb2.HttpProtocolOptions) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=over_ads()),
        connect_timeout=duration_pb2.Duration(seconds=1),
        typed_extension_protocol_options={_PROTOCOL_OPTIONS: packed_any(options)},
        per_connection_buffer_limit_bytes=wrappers_pb2.UInt32Value(value=MAX_MESSAGE_BYTES),
    )


def _http2() -> http_protocol_options_pb2.HttpProtocolOptions:
    """HTTP/2 with a ping every 10 s, so that a host that vanished without a word is noticed."""
    options = protocol_pb2.Http2ProtocolOptions(
        max_concurrent_streams=wrappers_pb2.UInt32Value(value=_MAX_STREAMS),
        connection_keepalive=protocol_pb2.KeepaliveSettings(
            interval=duration_pb2.Duration(seconds=10), timeout=duration_pb2.Duration(seconds=3)
        ),
    )
    explicit = http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=options)
    return http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit)


def _http1() -> http_protocol_options_pb2.HttpProtocolOptions:
    options = protocol_pb2.Http1ProtocolOptions()
    explicit = http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(http_protocol_options=options)
    return http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit)


def load_assignment(cluster: str, found: Iterable[Weighted]) -> endpoint_pb2.ClusterLoadAssignment:
    """A cluster's endpoints as a resource."""
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster, endpoints=[_locality(each) for each in found])


@functools.lru_cache(maxsize=16_384)
def no_endpoints(cluster: str) -> bytes:
    """What a cluster without endpoints is told, serialized."""
    return pack(load_assignment(cluster, ()))


@functools.lru_cache(maxsize=16_384)
def _locality(endpoint: Weighted) -> endpoint_components_pb2.LocalityLbEndpoints:
    """One endpoint in a locality of its own: gRPC's round_robin heeds the weights of localities, not of endpoints."""
    address = address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=endpoint.ip, port_value=endpoint.port)
    )
    return endpoint_components_pb2.LocalityLbEndpoints(
        locality=base_pb2.Locality(region=endpoint.owner),
        load_balancing_weight=wrappers_pb2.UInt32Value(value=endpoint.weight),
        lb_endpoints=[endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=address))],
    )

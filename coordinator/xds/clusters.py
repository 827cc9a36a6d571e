"""Clusters and their endpoints. gRPC clients and Envoy share those that speak gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import any_pb2, duration_pb2, wrappers_pb2

from coordinator.state import State, VersionKey, routable
from coordinator.xds.readiness import Serving, ip_of
from coordinator.xds.snapshot import over_ads, packed_any
from meshkit.channel import MAX_MESSAGE_BYTES

ANY_NODE = "any"
ANY_NODE_HTTP = "any/http"
COORDINATORS = "coordinators"

HostPort = tuple[str, str, int]
"""(locality, IP address, port): the locality is the node's or the coordinator's id."""

_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Both engines stop at 1024 concurrent requests by default, Envoy also at 3 concurrent retries. Nothing here is meant to
# be a limit: Triton's own queue decides.
_NO_LIMIT = 1 << 30
_MAX_STREAMS = 1 << 16


def grpc_cluster(name: str, version: str) -> str:
    """Name of the cluster that holds a version's KServe v2 gRPC endpoints."""
    return f"{name}/{version}"


def http_cluster(name: str, version: str) -> str:
    """Name of the cluster that holds a version's KServe v2 REST endpoints."""
    return f"{name}/{version}/http"


def clusters(state: State) -> Iterator[cluster_pb2.Cluster]:
    """One gRPC and one REST cluster for each version of a deployment, and those that belong to no model."""
    for name, version in _versions(state):
        yield _cluster(grpc_cluster(name, version), http2=True)
        yield _cluster(http_cluster(name, version), http2=False)
    yield _cluster(ANY_NODE, http2=True)
    yield _cluster(ANY_NODE_HTTP, http2=False)
    yield _cluster(COORDINATORS, http2=True)


def load_assignments(state: State, serving: Serving) -> Iterator[endpoint_pb2.ClusterLoadAssignment]:
    """The endpoints of every cluster that `clusters` gives, those without any included."""
    for name, version in _versions(state):
        found = serving.of(name, version)
        yield _assignment(grpc_cluster(name, version), ((each.node, each.ip, each.grpc_port) for each in found))
        yield _assignment(http_cluster(name, version), ((each.node, each.ip, each.http_port) for each in found))
    yield _assignment(ANY_NODE, ((each.node, each.ip, each.grpc_port) for each in serving.ready))
    yield _assignment(ANY_NODE_HTTP, ((each.node, each.ip, each.http_port) for each in serving.ready))
    yield _assignment(COORDINATORS, _coordinators(state))


def _versions(state: State) -> Iterator[VersionKey]:
    """What deployments ask for, and what still answers for them while it is being replaced."""
    for name, deployment in sorted(state.deployments.items()):
        asked = [target.version for target in deployment.targets]
        answering = [version for version, _ in routable(state, deployment)]
        yield from ((name, version) for version in dict.fromkeys([*asked, *answering]))


def _coordinators(state: State) -> Iterator[HostPort]:
    for _, coordinator in sorted(state.coordinators.items()):
        host, _, port = coordinator.address.rpartition(":")
        ip = ip_of(host.strip("[]"))
        if ip and port.isdigit():
            yield coordinator.id, ip, int(port)


def _cluster(name: str, *, http2: bool) -> cluster_pb2.Cluster:
    threshold = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=wrappers_pb2.UInt32Value(value=_NO_LIMIT),
        max_pending_requests=wrappers_pb2.UInt32Value(value=_NO_LIMIT),
        max_requests=wrappers_pb2.UInt32Value(value=_NO_LIMIT),
        max_retries=wrappers_pb2.UInt32Value(value=_NO_LIMIT),
    )
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=over_ads()),
        connect_timeout=duration_pb2.Duration(seconds=1),
        lb_policy=cluster_pb2.Cluster.ROUND_ROBIN,
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(
            locality_weighted_lb_config=cluster_pb2.Cluster.CommonLbConfig.LocalityWeightedLbConfig(),
        ),
        circuit_breakers=circuit_breaker_pb2.CircuitBreakers(thresholds=[threshold]),
        typed_extension_protocol_options={_PROTOCOL_OPTIONS: _http2() if http2 else _http1()},
        per_connection_buffer_limit_bytes=wrappers_pb2.UInt32Value(value=MAX_MESSAGE_BYTES),
    )


def _http2() -> any_pb2.Any:
    """HTTP/2 with a ping every 10 s, so that a host that vanished without a word is noticed."""
    options = protocol_pb2.Http2ProtocolOptions(
        max_concurrent_streams=wrappers_pb2.UInt32Value(value=_MAX_STREAMS),
        connection_keepalive=protocol_pb2.KeepaliveSettings(
            interval=duration_pb2.Duration(seconds=10), timeout=duration_pb2.Duration(seconds=3)
        ),
    )
    explicit = http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=options)
    return packed_any(http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit))


def _http1() -> any_pb2.Any:
    options = protocol_pb2.Http1ProtocolOptions()
    explicit = http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(http_protocol_options=options)
    return packed_any(http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit))


def _assignment(cluster: str, endpoints: Iterable[HostPort]) -> endpoint_pb2.ClusterLoadAssignment:
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster, endpoints=[_locality(each) for each in endpoints])


def _locality(endpoint: HostPort) -> endpoint_components_pb2.LocalityLbEndpoints:
    """One endpoint in a locality of its own: gRPC's round_robin heeds the weights of localities, not of endpoints."""
    locality, ip, port = endpoint
    address = address_pb2.Address(socket_address=address_pb2.SocketAddress(address=ip, port_value=port))
    return endpoint_components_pb2.LocalityLbEndpoints(
        locality=base_pb2.Locality(region=locality),
        load_balancing_weight=wrappers_pb2.UInt32Value(value=1),
        lb_endpoints=[endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=address))],
    )

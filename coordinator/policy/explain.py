"""Walks the compiled routes as the engines would for one request, and says what it finds. Pure.

It reads the same messages that clients are sent, so that it cannot say what they were not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_components_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.policy.effects import effects
from coordinator.state import State
from coordinator.xds.balancing import NO_LIMIT
from coordinator.xds.clusters import clusters, load_assignments
from coordinator.xds.elsewhere import stand_in
from coordinator.xds.model_routes import BY_WEIGHTS, fallback_name, match_name, model_routes
from coordinator.xds.policy import GATEWAY, PROGRAMS
from coordinator.xds.readiness import find_serving, is_available, why_out, why_unavailable
from coordinator.xds.weights import node_shares

_MILLION = 1_000_000


@dataclass(frozen=True)
class _Compiled:
    """What clients are sent about one deployment."""

    state: State
    deployment: routing_pb2.Deployment
    headers: Mapping[str, str]
    clusters: Mapping[str, cluster_pb2.Cluster]
    endpoints: Mapping[str, endpoint_pb2.ClusterLoadAssignment]


def explain(
    state: State, deployment: routing_pb2.Deployment, headers: Mapping[str, str]
) -> routing_pb2.ExplainRouteResponse:
    """Where a request with these headers (names in lower case) would go now, through each engine."""
    serving = find_serving(state)
    concerned = _concerned(state, deployment)
    compiled = _Compiled(
        state,
        deployment,
        headers,
        {each.name: each for each in clusters(concerned)},
        {each.cluster_name: each for each in load_assignments(concerned, serving)},
    )
    in_gateway, itself = stand_in(state, deployment, serving) is not None, is_available(state, deployment, serving)
    return routing_pb2.ExplainRouteResponse(
        revision=state.revision,
        gateway=_way(compiled, model_routes(state, deployment, serving, GATEWAY), refused=not in_gateway),
        programs=_way(compiled, model_routes(state, deployment, serving, PROGRAMS), refused=not itself),
        rules=effects(deployment),
    )


def _concerned(state: State, deployment: routing_pb2.Deployment) -> State:
    """The state with the deployments that this one's policy leads to alone; nodes and versions are the same."""
    names = {deployment.name, *deployment.policy.fallbacks, deployment.policy.mirror.deployment}
    return replace(state, deployments={name: each for name, each in state.deployments.items() if name in names})


def _way(compiled: _Compiled, routes: Sequence[route_components_pb2.Route], *, refused: bool) -> routing_pb2.Way:
    route = next(route for route in routes if _holds(route.match, compiled.headers))
    way = routing_pb2.Way(
        decided_by=_decided_by(compiled.deployment, route.name),
        passed_over=_passed_over(compiled.deployment, [each.name for each in routes], compiled.headers),
        shares=_shares(compiled, route.route),
        copies=[_copy(each) for each in route.route.request_mirror_policies],
    )
    if refused and route.name == BY_WEIGHTS:
        way.decided_by = f"refused with UNAVAILABLE: {why_unavailable(compiled.state, compiled.deployment)}"
    _say_times(way, route.route)
    return way


def _holds(match: route_components_pb2.RouteMatch, headers: Mapping[str, str]) -> bool:
    return all(headers.get(each.name) == each.string_match.exact for each in match.headers)


def _decided_by(deployment: routing_pb2.Deployment, route: str) -> str:
    for index, match in enumerate(deployment.policy.matches):
        if route == match_name(index):
            return f"match {match.header} = {match.value}: version {match.version}"
    for name in deployment.policy.fallbacks:
        if route == fallback_name(name):
            return f"no replica of {deployment.name} with a weight is ready: its fallback {name}"
    assert route == BY_WEIGHTS, "there are no other routes"
    return "no match holds: the weights" if deployment.policy.matches else "the weights"


def _passed_over(
    deployment: routing_pb2.Deployment, routes: Sequence[str], headers: Mapping[str, str]
) -> Iterator[str]:
    for index, match in enumerate(deployment.policy.matches):
        if headers.get(match.header) == match.value and match_name(index) not in routes:
            yield f"match {match.header} = {match.value}: no replica of {match.version} is ready"


def _shares(compiled: _Compiled, action: route_components_pb2.RouteAction) -> Iterator[routing_pb2.Share]:
    weighted = action.weighted_clusters.clusters
    total = sum(each.weight.value for each in weighted)
    split = [(each.name, each.weight.value * 100 / total) for each in weighted] or [(action.cluster, 100.0)]
    for name, percent in split:
        yield _share(compiled, name, percent)


def _share(compiled: _Compiled, cluster: str, percent: float) -> routing_pb2.Share:
    name, version, *_ = cluster.split("/")
    found = compiled.clusters[cluster]
    limit = found.circuit_breakers.thresholds[0].max_requests.value
    return routing_pb2.Share(
        deployment=name,
        version=version,
        percent=percent,
        balancer=_balancer(found),
        max_requests=0 if limit == NO_LIMIT else limit,
        endpoints=_endpoints(compiled, name, version, cluster),
    )


def _balancer(cluster: cluster_pb2.Cluster) -> str:
    if cluster.HasField("load_balancing_policy"):
        return "least request (gateway), by turns (programs)"
    return "ring hash" if cluster.lb_policy == cluster_pb2.Cluster.RING_HASH else "by weight"


def _endpoints(compiled: _Compiled, name: str, version: str, cluster: str) -> Iterator[routing_pb2.RouteEndpoint]:
    localities = compiled.endpoints[cluster].endpoints
    by_weight = _balancer(compiled.clusters[cluster]) == "by weight"
    total = sum(each.load_balancing_weight.value for each in localities)
    nodes = [each.locality.region for each in localities]
    reasons = node_shares(compiled.state, compiled.state.deployments[name], version, nodes)
    for locality, share in zip(localities, reasons, strict=True):
        address = locality.lb_endpoints[0].endpoint.address.socket_address
        yield routing_pb2.RouteEndpoint(
            node=locality.locality.region,
            address=f"{address.address}:{address.port_value}",
            percent=locality.load_balancing_weight.value * 100 / total if by_weight else 0,
            reason=share.reason if by_weight else "",
        )
    for node, reason in why_out(compiled.state, (name, version), nodes):
        yield routing_pb2.RouteEndpoint(node=node, reason=reason)


def _copy(mirror: route_components_pb2.RouteAction.RequestMirrorPolicy) -> routing_pb2.Copy:
    name, version, *_ = mirror.cluster.split("/")
    share = mirror.runtime_fraction.default_value.numerator * 100 / _MILLION
    return routing_pb2.Copy(deployment=name, version=version, percent=share)


def _say_times(way: routing_pb2.Way, action: route_components_pb2.RouteAction) -> None:
    if action.HasField("max_stream_duration"):
        way.timeout.CopyFrom(action.max_stream_duration.max_stream_duration)
    if not action.HasField("retry_policy"):
        return
    retry = action.retry_policy
    way.retries, way.retry_on = retry.num_retries.value, retry.retry_on
    way.retry_back_off.CopyFrom(retry.retry_back_off.base_interval)
    if retry.HasField("per_try_timeout"):
        hedged = action.hedge_policy.hedge_on_per_try_timeout
        (way.hedge_delay if hedged else way.try_timeout).CopyFrom(retry.per_try_timeout)

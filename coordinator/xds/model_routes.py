"""The routes of one deployment: a match each, in the policy's order, then the weights; or its fallback's."""

from __future__ import annotations

from envoy.config.route.v3 import route_components_pb2
from envoy.type.v3 import percent_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from coordinator.xds.clusters import grpc_cluster, http_cluster
from coordinator.xds.elsewhere import borrowed_cluster, mirrored, stand_in
from coordinator.xds.policy import Engine, route_action
from coordinator.xds.readiness import Serving, VersionWeight, shares
from coordinator.xds.replies import everything

BY_WEIGHTS = "weights"
"""Name of the route that takes what no match does."""
_MILLION = 1_000_000
_PER_MILLION = percent_pb2.FractionalPercent.MILLION


def match_name(index: int) -> str:
    """Name of the route of a policy's match, by its place in the list."""
    return f"match {index}"


def fallback_name(name: str) -> str:
    """Name of the route to a fallback."""
    return f"fallback {name}"


def model_routes(
    state: State, deployment: routing_pb2.Deployment, serving: Serving, engine: Engine
) -> list[route_components_pb2.Route]:
    """At least one; the last takes every request. A match whose version has no ready replica has no route.

    One whose version is ready holds also while the versions with a weight are not, and something else takes the rest.
    """
    other = stand_in(state, deployment, serving) if engine.gateway else deployment
    routes = [
        _to_match(index, match, deployment, engine)
        for index, match in enumerate(deployment.policy.matches)
        if serving.of(deployment.name, match.version)
    ]
    if other is None or other is deployment:
        routes.append(_route(BY_WEIGHTS, deployment, shares(state, deployment, serving), engine))
    if engine.gateway:
        for route in routes:
            _mirror(route.route, state, deployment, serving, engine)
    if other is not None and other is not deployment:
        routes.append(_to_fallback(state, deployment, other, serving, engine))
    return routes


def _to_match(
    index: int, match: routing_pb2.Match, deployment: routing_pb2.Deployment, engine: Engine
) -> route_components_pb2.Route:
    route = _route(match_name(index), deployment, [(match.version, 1)], engine)
    route.match.headers.add(name=match.header).string_match.exact = match.value
    return route


def _route(
    name: str, deployment: routing_pb2.Deployment, versions: list[VersionWeight], engine: Engine
) -> route_components_pb2.Route:
    def cluster_of(version: str) -> str:
        return _own_cluster(deployment.name, version, engine)

    action = route_action(deployment.policy, versions, cluster_of, engine)
    return route_components_pb2.Route(name=name, match=everything(), route=action)


def _own_cluster(name: str, version: str, engine: Engine) -> str:
    return (http_cluster if engine.http else grpc_cluster)(name, version)


def _to_fallback(
    state: State,
    deployment: routing_pb2.Deployment,
    other: routing_pb2.Deployment,
    serving: Serving,
    engine: Engine,
) -> route_components_pb2.Route:
    def cluster_of(version: str) -> str:
        return borrowed_cluster(deployment.name, other.name, version, http=engine.http)

    action = route_action(deployment.policy, shares(state, other, serving), cluster_of, engine)
    return route_components_pb2.Route(name=fallback_name(other.name), match=everything(), route=action)


def _mirror(
    action: route_components_pb2.RouteAction,
    state: State,
    deployment: routing_pb2.Deployment,
    serving: Serving,
    engine: Engine,
) -> None:
    """A version that gets copies gets none of requests that are its own already."""
    other = deployment.policy.mirror.deployment
    for version, percent in mirrored(state, deployment, serving):
        cluster = borrowed_cluster(deployment.name, other, version, http=engine.http)
        if not other:
            cluster = _own_cluster(deployment.name, version, engine)
        if cluster == action.cluster:
            continue
        copied = action.request_mirror_policies.add(cluster=cluster)
        copied.runtime_fraction.default_value.numerator = round(percent / 100 * _MILLION)
        copied.runtime_fraction.default_value.denominator = _PER_MILLION
        copied.disable_shadow_host_suffix_append = True

"""What `explain` says against what an engine would do: a walk of its own over the messages that clients are sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.routing.v1 import routing_pb2
from coordinator.policy.explain import explain
from coordinator.state import State
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.gateway_routes import GATEWAY_ROUTES
from coordinator.xds.snapshot import RDS, Snapshot
from tests.unit.policy.test_explain import with_policies
from tests.unit.xds.test_compile import endpoints, unpack, weights_of

_SERVICE = "/inference.GRPCInferenceService"
Headers = Mapping[str, str]


@settings(max_examples=90)
@given(with_policies(), st.sampled_from([{}, {"x-tenant": "acme"}, {"x-tenant": "umbrella corp"}]))
def test_what_is_explained_is_what_the_routes_do(state: State, headers: Headers) -> None:
    snapshot = compile_snapshot(state)
    for name, deployment in state.deployments.items():
        found = explain(state, deployment, headers)
        for path, rest in ((f"{_SERVICE}/ModelInfer", ""), (f"/v2/models/{name}/infer", "/http")):
            route = _gateway(snapshot, {**headers, ":path": path, "x-aimesh-model": name})
            assert _refused(found.gateway) == route.HasField("direct_response")
            if not _refused(found.gateway):
                assert _shares(route.route) == {
                    f"{each}{rest}": percent for each, percent in _said(name, found.gateway)
                }
                bound = (
                    found.gateway.hedge_delay if found.gateway.HasField("hedge_delay") else found.gateway.try_timeout
                )
                assert route.route.retry_policy.per_try_timeout == bound
        route = _first(unpack(snapshot, RDS, name).virtual_hosts[0].routes, headers)
        assert _shares(route.route) == dict(_said(name, found.programs))
        assert _refused(found.programs) == (not any(endpoints(snapshot, each) for each in _shares(route.route)))


@settings(max_examples=40)
@given(with_policies())
def test_streams_take_the_same_ways_without_a_bound_on_a_try(state: State) -> None:
    snapshot = compile_snapshot(state)
    for name in state.deployments:
        for stream, unary in (
            (f"{_SERVICE}/ModelStreamInfer", f"{_SERVICE}/ModelInfer"),
            (f"/v2/models/{name}/generate_stream", f"/v2/models/{name}/generate"),
        ):
            streamed, once = (
                _gateway(snapshot, {":path": path, "x-aimesh-model": name, "x-tenant": "acme"})
                for path in (stream, unary)
            )
            assert streamed.direct_response == once.direct_response
            assert weights_of(streamed.route) == weights_of(once.route)
            assert not streamed.route.retry_policy.HasField("per_try_timeout")
            assert not streamed.route.HasField("hedge_policy")


def _refused(way: routing_pb2.Way) -> bool:
    return way.decided_by.startswith("refused")


def _said(name: str, way: routing_pb2.Way) -> list[tuple[str, float]]:
    """(cluster, percent) of each share."""
    lent = {each.deployment for each in way.shares} - {name}
    return [
        (f"{each.deployment}/{each.version}" + (f"/as/{name}" if lent else ""), round(each.percent, 6))
        for each in way.shares
    ]


def _shares(action: Any) -> dict[str, float]:
    weights = {cluster: weight or 1 for cluster, weight in weights_of(action).items()}
    return {cluster: round(weight * 100 / sum(weights.values()), 6) for cluster, weight in weights.items()}


def _gateway(snapshot: Snapshot, headers: Headers) -> Any:
    (host,) = unpack(snapshot, RDS, GATEWAY_ROUTES).virtual_hosts
    return _first(_looked_up(host.matcher, headers), headers)


def _looked_up(matcher: Any, headers: Headers) -> Any:
    """The routes that a matcher tree leads to."""
    tree, given_ = matcher.matcher_tree, http_inputs_pb2.HttpRequestHeaderMatchInput()
    assert tree.input.typed_config.Unpack(given_)
    value, found = headers.get(given_.header_name, ""), matcher.on_no_match
    exact, prefixes = tree.exact_match_map.map, tree.prefix_match_map.map
    if value in exact:
        found = exact[value]
    elif held := [each for each in prefixes if value.startswith(each)]:
        found = prefixes[max(held, key=len)]
    if found.HasField("matcher"):
        return _looked_up(found.matcher, headers)
    routes = route_components_pb2.RouteList()
    assert found.action.typed_config.Unpack(routes)
    return routes.routes


def _first(routes: Any, headers: Headers) -> Any:
    return next(route for route in routes if _holds(route.match, headers))


def _holds(match: route_components_pb2.RouteMatch, headers: Headers) -> bool:
    path = headers.get(":path", "/")
    kind = match.WhichOneof("path_specifier")
    if kind == "safe_regex":
        held = re.fullmatch(match.safe_regex.regex, path) is not None
    else:
        held = path == match.path if kind == "path" else path.startswith(match.prefix)
    return held and all(headers.get(each.name) == each.string_match.exact for each in match.headers)

"""The gateway's routes: KServe v2 over gRPC and REST by model, the mesh's own API, and everything that is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus

import grpc
from envoy.config.route.v3 import route_components_pb2, route_pb2
from google.protobuf import duration_pb2

from aimesh.identity.v1 import scope_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from coordinator.xds.clusters import ANY_NODE, ANY_NODE_HTTP, COORDINATORS
from coordinator.xds.elsewhere import stand_in
from coordinator.xds.matching import OnMatch, exact, longest_prefix, routes_action
from coordinator.xds.model_routes import model_routes
from coordinator.xds.policy import GATEWAY, GATEWAY_REST, Engine, bounds_tries, retry_policy
from coordinator.xds.readiness import Serving, why_unavailable
from coordinator.xds.replies import everything, grpc_reply, json_reply, literal, text_reply
from coordinator.xds.security import configured, keys_left_to_the_server, keys_required
from coordinator.xds.snapshot import packed_any

GATEWAY_ROUTES = "gateway/routes"
"""Name of the gateway's route configuration; the slash keeps it apart from every deployment's."""
MODEL_HEADER = "x-aimesh-model"
"""Request header that names the model."""
BY_MESSAGE_FILTERS = ("envoy.filters.http.grpc_field_extraction", "envoy.filters.http.lua")
"""Filters that read the model's name from the message; off in the gateway's listener, on where no header names it."""

REST_FILTER = "envoy.filters.http.buffer"
"""Bounds the body of a REST request; off in the gateway's listener, on where a model is asked by REST: JSON of some
megabytes kills Triton's REST server. Larger tensors go by gRPC."""

_SERVICE = "/inference.GRPCInferenceService/"
_STREAM = f"{_SERVICE}ModelStreamInfer"
_MODEL_PATH = "/v2/models/[^/]+(/versions/[0-9]+)?"
"""Regular expression of a model's own path; Envoy leaves the query out."""
_REFUSED = "the mesh decides what is loaded and how servers are set; use: aimesh deploy, aimesh undeploy"
_NOTHING_HERE = "nothing is served at %REQ(:PATH)%"
_NO_REST = "this mesh speaks TLS, which Triton's REST server does not: ask by gRPC (inference.GRPCInferenceService)"
_POLICY = routing_pb2.RoutePolicy()


def gateway_routes(state: State, serving: Serving, *, secure: bool = False) -> route_pb2.RouteConfiguration:
    """All routes of the gateway. What none allows is refused: a new call of Triton's is closed until it is added.

    With `secure`, models answer callers with a live API key only.
    """
    host = route_components_pb2.VirtualHost(name="gateway", domains=["*"])
    host.matcher.CopyFrom(_by_path(state, serving, secure=secure).matcher)
    if secure:
        configured(host, keys_required(_may_infer(state)))
    return route_pb2.RouteConfiguration(name=GATEWAY_ROUTES, virtual_hosts=[host])


def _may_infer(state: State) -> Iterable[str]:
    allowed = {scope_pb2.SCOPE_INFER, scope_pb2.SCOPE_ADMIN}
    return (key_id for key_id, key in state.api_keys.items() if allowed & set(key.scopes))


def _by_path(state: State, serving: Serving, *, secure: bool) -> OnMatch:
    unchecked = keys_left_to_the_server() if secure else {}
    coordinators = routes_action([configured(_to_coordinators(), unchecked)])
    any_node_http = _no_rest() if secure else routes_action([_to_any_node(ANY_NODE_HTTP, http=True)])
    any_node = routes_action([_to_any_node(ANY_NODE, http=False)])
    fixed = {
        "/healthz": routes_action([configured(text_reply(HTTPStatus.OK, "ok\n"), unchecked)]),
        "/v2": any_node_http,
        "/v2/": any_node_http,
        "/v2/models/stats": any_node_http,
        f"{_SERVICE}RepositoryIndex": any_node,
    }
    by_prefix = {
        # The six methods that name a model all begin with Model; those that load and unload begin with Repository.
        f"{_SERVICE}Model": _grpc_by_model(state, serving),
        f"{_SERVICE}Server": any_node,
        _SERVICE: routes_action([grpc_reply(grpc.StatusCode.PERMISSION_DENIED, _REFUSED)]),
        "/v2/health/": any_node_http,
        "/v2/models/": _no_rest() if secure else _rest_by_model(state, serving),
        **dict.fromkeys(("/v2/repository", "/v2/systemsharedmemory", "/v2/cudasharedmemory"), _rest_refused()),
        **dict.fromkeys(("/v2/trace", "/v2/logging"), _rest_refused()),
        **dict.fromkeys(("/aimesh.", "/grpc.reflection.", "/grpc.health.", "/grpc.channelz."), coordinators),
    }
    return exact(":path", fixed, longest_prefix(":path", by_prefix, _unknown_path()))


def _unknown_path() -> OnMatch:
    over_grpc = route_components_pb2.RouteMatch(
        prefix="/", grpc=route_components_pb2.RouteMatch.GrpcRouteMatchOptions()
    )
    refused = grpc_reply(grpc.StatusCode.UNIMPLEMENTED, _NOTHING_HERE, over_grpc)
    return routes_action([refused, json_reply(HTTPStatus.NOT_FOUND, _NOTHING_HERE)])


def _grpc_by_model(state: State, serving: Serving) -> OnMatch:
    """By the header that names the model, set by the client or, from the message, by the filters."""
    refused = {
        name: [grpc_reply(grpc.StatusCode.UNAVAILABLE, literal(reason))]
        for name, reason in _unavailable(state, serving).items()
    }
    by_name = {name: routes_action(reply) for name, reply in refused.items()}
    for name, deployment in state.deployments.items():
        plain = model_routes(state, deployment, serving, GATEWAY)
        streams = _streams(state, deployment, serving, GATEWAY)
        for route in streams:
            route.match.path = _STREAM
        by_name[name] = routes_action(_told_apart(streams, plain, refused.get(name, [])))
    return exact(MODEL_HEADER, by_name, routes_action(_grpc_without_model()))


def _streams(
    state: State, deployment: routing_pb2.Deployment, serving: Serving, engine: Engine
) -> list[route_components_pb2.Route]:
    """The routes of calls that answer little by little, where their tries have another bound than those of others."""
    if not bounds_tries(deployment.policy):
        return []
    return model_routes(state, deployment, serving, replace(engine, streams=True))


def _told_apart(
    streams: list[route_components_pb2.Route],
    plain: list[route_components_pb2.Route],
    refused: Sequence[route_components_pb2.Route],
) -> list[route_components_pb2.Route]:
    """One list of them; a refusal takes the place of the last ones, which lead nowhere then."""
    return [*streams[:-1], *plain[:-1], *refused] if refused else [*streams, *plain]


def _grpc_without_model() -> list[route_components_pb2.Route]:
    """For calls whose header names no known model, and for those without the header until the message is read."""
    named = route_components_pb2.RouteMatch(prefix="/")
    named.headers.add(name=MODEL_HEADER, present_match=True)
    unknown = grpc_reply(
        grpc.StatusCode.NOT_FOUND, f"model '%REQ({MODEL_HEADER})%' does not exist; see: aimesh models list", named
    )
    statistics = _to_any_node(ANY_NODE, http=False)
    statistics.match.CopyFrom(route_components_pb2.RouteMatch(path=f"{_SERVICE}ModelStatistics"))
    nameless = grpc_reply(
        grpc.StatusCode.INVALID_ARGUMENT, f"the request names no model, in its message or in the header {MODEL_HEADER}"
    )
    for route in (statistics, nameless):
        for name in BY_MESSAGE_FILTERS:
            route.typed_per_filter_config[name].CopyFrom(_switched_on())
    return [unknown, statistics, nameless]


def _rest_by_model(state: State, serving: Serving) -> OnMatch:
    """By the name in /v2/models/<name>[/...][?...]: two lookups, so that no name is taken for a longer one."""
    refused = {
        name: [json_reply(HTTPStatus.SERVICE_UNAVAILABLE, literal(reason))]
        for name, reason in _unavailable(state, serving).items()
    }
    by_name = {name: routes_action(reply) for name, reply in refused.items()}
    nothing_here = json_reply(HTTPStatus.NOT_FOUND, _NOTHING_HERE)
    for name, deployment in state.deployments.items():
        found = _to_model_http(state, deployment, serving, refused.get(name, []))
        by_name[name] = routes_action([*found, _refuse_trace(), nothing_here])
    unknown = json_reply(HTTPStatus.NOT_FOUND, "no model of that name: %REQ(:PATH)%; see: aimesh models list")
    below = {f"/v2/models/{name}{mark}": action for name, action in by_name.items() for mark in "/?"}
    itself = {f"/v2/models/{name}": action for name, action in by_name.items()}
    return longest_prefix(":path", below, exact(":path", itself, routes_action([unknown])))


def _to_model_http(
    state: State, deployment: routing_pb2.Deployment, serving: Serving, refused: Sequence[route_components_pb2.Route]
) -> list[route_components_pb2.Route]:
    plain = model_routes(state, deployment, serving, GATEWAY_REST)
    streams = _streams(state, deployment, serving, GATEWAY_REST)
    for route in plain:
        # Everything that can be asked of a model: what is not here is refused, also what a newer Triton adds.
        route.match.safe_regex.regex = f"{_MODEL_PATH}(/(infer|generate|generate_stream|ready|config|stats))?"
    for route in streams:
        route.match.safe_regex.regex = f"{_MODEL_PATH}/generate_stream"
    for route in (*streams, *plain):
        route.typed_per_filter_config[REST_FILTER].CopyFrom(_switched_on())
    return _told_apart(streams, plain, refused)


def _refuse_trace() -> route_components_pb2.Route:
    """The one call below a model that changes how the server is set, in all its forms."""
    match = route_components_pb2.RouteMatch()
    match.safe_regex.regex = f"{_MODEL_PATH}/trace.*"
    return json_reply(HTTPStatus.FORBIDDEN, _REFUSED, match)


def _no_rest() -> OnMatch:
    return routes_action([json_reply(HTTPStatus.NOT_IMPLEMENTED, _NO_REST)])


def _rest_refused() -> OnMatch:
    return routes_action([json_reply(HTTPStatus.FORBIDDEN, _REFUSED)])


def _to_any_node(cluster: str, *, http: bool) -> route_components_pb2.Route:
    action = route_components_pb2.RouteAction(
        cluster=cluster,
        timeout=duration_pb2.Duration(),
        idle_timeout=duration_pb2.Duration(),
        retry_policy=retry_policy(_POLICY, GATEWAY_REST if http else GATEWAY),
    )
    return route_components_pb2.Route(match=everything(), route=action)


def _to_coordinators() -> route_components_pb2.Route:
    """Only a call that never reached a coordinator is tried again: what it asks for may not be safe to do twice."""
    action = route_components_pb2.RouteAction(
        cluster=COORDINATORS, timeout=duration_pb2.Duration(), idle_timeout=duration_pb2.Duration()
    )
    action.retry_policy.retry_on = "connect-failure,refused-stream"
    action.retry_policy.num_retries.value = 2
    return route_components_pb2.Route(match=everything(), route=action)


def _unavailable(state: State, serving: Serving) -> dict[str, str]:
    """Every model that exists without a ready replica that takes requests by weight, of its own or of a fallback, with
    the reason."""
    reasons = {
        name: f"model {name} is not deployed; run: aimesh deploy {name}"
        for name, _ in state.versions
        if name not in state.deployments
    }
    for name, deployment in state.deployments.items():
        if stand_in(state, deployment, serving) is None:
            reasons[name] = why_unavailable(state, deployment)
    return reasons


def _switched_on() -> object:
    """Turns a filter on that is off in the listener, with the listener's configuration."""
    switched = route_components_pb2.FilterConfig()
    switched.config.SetInParent()
    return packed_any(switched)

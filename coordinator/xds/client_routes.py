"""What gRPC programs get for the target xds:///<deployment>: a listener and its routes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import grpc
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.type.v3 import percent_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from coordinator.xds.clusters import COORDINATORS
from coordinator.xds.model_routes import model_routes
from coordinator.xds.policy import PROGRAMS
from coordinator.xds.readiness import Serving
from coordinator.xds.replies import everything
from coordinator.xds.snapshot import over_ads, pack, packed_any


def client_listener(name: str) -> listener_pb2.Listener:
    """The listener that a gRPC client asks for first; it takes its routes over ADS too."""
    manager = hcm_pb2.HttpConnectionManager(rds=hcm_pb2.Rds(config_source=over_ads(), route_config_name=name))
    return _listener(name, manager, [])


def client_routes(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> route_pb2.RouteConfiguration:
    """The deployment's routes alone: its name is the target, so no other name is looked for."""
    return _routes(deployment.name, model_routes(state, deployment, serving, PROGRAMS))


@functools.lru_cache(maxsize=1024)
def absent_listener(name: str) -> bytes:
    """A listener, serialized, that answers every call for a name that nobody deployed with NOT_FOUND.

    Leaving the name out of the response is what the protocol offers, but then gRPC's own client waits for 15 s before
    it believes it and Node.js's until the call's deadline. The only way to have a client end a call with a status of
    one's choice is fault injection (gRFC A33); its text, "Fault injected", cannot be set.
    """
    fault = fault_pb2.HTTPFault(
        abort=fault_pb2.FaultAbort(
            grpc_status=grpc.StatusCode.NOT_FOUND.value[0], percentage=percent_pb2.FractionalPercent(numerator=100)
        )
    )
    # The route is never taken, but a route must point somewhere.
    somewhere = route_components_pb2.RouteAction(cluster=COORDINATORS)
    routes = _routes(name, [route_components_pb2.Route(match=everything(), route=somewhere)])
    manager = hcm_pb2.HttpConnectionManager(route_config=routes)
    refuse = hcm_pb2.HttpFilter(name="envoy.filters.http.fault", typed_config=packed_any(fault))
    return pack(_listener(name, manager, [refuse]))


def _listener(
    name: str, manager: hcm_pb2.HttpConnectionManager, filters: Sequence[hcm_pb2.HttpFilter]
) -> listener_pb2.Listener:
    router = hcm_pb2.HttpFilter(name="envoy.filters.http.router", typed_config=packed_any(router_pb2.Router()))
    manager.http_filters.extend([*filters, router])
    return listener_pb2.Listener(name=name, api_listener=api_listener_pb2.ApiListener(api_listener=packed_any(manager)))


def _routes(name: str, routes: Sequence[route_components_pb2.Route]) -> route_pb2.RouteConfiguration:
    host = route_components_pb2.VirtualHost(name=name, domains=["*"], routes=routes)
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])

"""Compiles the state into xDS resources: a pure function, so every coordinator serves the same configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, routable
from coordinator.xds.client_routes import client_listener, client_routes
from coordinator.xds.clusters import (
    ANY_NODE,
    ANY_NODE_HTTP,
    COORDINATORS,
    Weighted,
    clusters,
    endpoints,
    every_node,
    load_assignment,
)
from coordinator.xds.gateway_routes import GATEWAY_ROUTES, gateway_routes
from coordinator.xds.memo import kept, next_generation
from coordinator.xds.readiness import Serving, find_serving
from coordinator.xds.security import PLANES, secured
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, OnDemand, Resources, Snapshot, pack


def compile_snapshot(state: State, *, secure: bool = False) -> Snapshot:
    """Everything that gRPC clients and gateways are configured with in this state; the same state, the same bytes.

    A deployment becomes a listener, a route configuration and, shared with the gateway, one cluster a target. `secure`
    is the mesh's TLS: then each kind of client gets clusters with credentials in the form that it reads, and gateways
    alone get the gateway's routes, which tell the ids of live API keys.
    """
    next_generation()
    serving = find_serving(state)
    deployments = [deployment for _, deployment in sorted(state.deployments.items()) if routable(state, deployment)]
    of_gateways: dict[str, Callable[[], bytes]] = {
        GATEWAY_ROUTES: lambda: pack(gateway_routes(state, serving, secure=secure))
    }
    of_clients: dict[str, Callable[[], bytes]] = {
        each.name: partial(_routes, state, each, serving) for each in deployments
    }
    resources = {
        LDS: {deployment.name: _listener(deployment.name) for deployment in deployments},
        RDS: OnDemand(of_clients if secure else of_gateways | of_clients),
        EDS: OnDemand(
            {name: partial(_endpoints, name, found) for name, found in endpoints(state, serving)}
            | {ANY_NODE: lambda: pack(every_node(serving, http=False))}
            | {ANY_NODE_HTTP: lambda: pack(every_node(serving, http=True))}
        ),
    }
    version = str(state.revision)
    if not secure:
        return Snapshot(version, {**resources, CDS: _by_name(clusters(state))})
    by_plane = {plane: _by_name(secured(clusters(state), plane, COORDINATORS)) for plane in PLANES}
    gateways = Snapshot(version, {**resources, CDS: by_plane["gateway"], RDS: OnDemand(of_gateways)})
    return Snapshot(version, {**resources, CDS: by_plane["client"]}, gateways)


@kept
def _listener(name: str) -> bytes:
    return pack(client_listener(name))


def _routes(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> bytes:
    return pack(client_routes(state, deployment, serving))


@kept
def _endpoints(cluster: str, found: tuple[Weighted, ...]) -> bytes:
    """Kept, since most clusters' endpoints stay as they are while others change."""
    return pack(load_assignment(cluster, found))


def _by_name(messages: Iterable[Any]) -> Resources:
    return {message.name: pack(message) for message in messages}

"""Compiles the state into xDS resources: a pure function, so every coordinator serves the same configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coordinator.state import State, routable
from coordinator.xds.client_routes import client_listener, client_routes
from coordinator.xds.clusters import COORDINATORS, clusters, load_assignments
from coordinator.xds.gateway_routes import GATEWAY_ROUTES, gateway_routes
from coordinator.xds.readiness import find_serving
from coordinator.xds.security import PLANES, secured
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, OnDemand, Resources, Snapshot, pack


def compile_snapshot(state: State, *, secure: bool = False) -> Snapshot:
    """Everything that gRPC clients and gateways are configured with in this state; the same state, the same bytes.

    A deployment becomes a listener, a route configuration and, shared with the gateway, one cluster a target. `secure`
    is the mesh's TLS: then each kind of client gets clusters with credentials in the form that it reads.
    """
    serving = find_serving(state)
    deployments = [deployment for _, deployment in sorted(state.deployments.items()) if routable(state, deployment)]
    routes = [client_routes(state, deployment, serving) for deployment in deployments]
    resources = {
        LDS: _by_name(client_listener(deployment.name) for deployment in deployments),
        RDS: OnDemand(_by_name(routes), {GATEWAY_ROUTES: lambda: pack(gateway_routes(state, serving, secure=secure))}),
        CDS: _by_name(clusters(state)),
        EDS: {each.cluster_name: pack(each) for each in load_assignments(state, serving)},
    }
    version = str(state.revision)
    if not secure:
        return Snapshot(version, resources)
    by_plane = {plane: _by_name(secured(clusters(state), plane, COORDINATORS)) for plane in PLANES}
    gateways = Snapshot(version, {**resources, CDS: by_plane["gateway"]})
    return Snapshot(version, {**resources, CDS: by_plane["client"]}, gateways)


def _by_name(messages: Iterable[Any]) -> Resources:
    return {message.name: pack(message) for message in messages}

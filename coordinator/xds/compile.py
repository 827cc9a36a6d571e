"""Compiles the state into xDS resources: a pure function, so every coordinator serves the same configuration."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, routable
from coordinator.xds.client_routes import client_listener, client_routes
from coordinator.xds.clusters import COORDINATORS, Weighted, clusters, endpoints, load_assignment
from coordinator.xds.gateway_routes import GATEWAY_ROUTES, gateway_routes
from coordinator.xds.readiness import Serving, find_serving
from coordinator.xds.security import PLANES, secured
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, OnDemand, Resources, Snapshot, pack

_KEPT_ENDPOINTS = 64


def compile_snapshot(state: State, *, secure: bool = False) -> Snapshot:
    """Everything that gRPC clients and gateways are configured with in this state; the same state, the same bytes.

    A deployment becomes a listener, a route configuration and, shared with the gateway, one cluster a target. `secure`
    is the mesh's TLS: then each kind of client gets clusters with credentials in the form that it reads.
    """
    serving = find_serving(state)
    deployments = [deployment for _, deployment in sorted(state.deployments.items()) if routable(state, deployment)]
    resources = {
        LDS: {deployment.name: _listener(deployment.name) for deployment in deployments},
        RDS: OnDemand(
            {GATEWAY_ROUTES: lambda: pack(gateway_routes(state, serving, secure=secure))}
            | {each.name: partial(_routes, state, each, serving) for each in deployments}
        ),
        CDS: _by_name(clusters(state)),
        EDS: OnDemand({name: partial(_endpoints, name, found) for name, found in endpoints(state, serving)}),
    }
    version = str(state.revision)
    if not secure:
        return Snapshot(version, resources)
    by_plane = {plane: _by_name(secured(clusters(state), plane, COORDINATORS)) for plane in PLANES}
    gateways = Snapshot(version, {**resources, CDS: by_plane["gateway"]})
    return Snapshot(version, {**resources, CDS: by_plane["client"]}, gateways)


@lru_cache(maxsize=4096)
def _listener(name: str) -> bytes:
    return pack(client_listener(name))


def _routes(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> bytes:
    return pack(client_routes(state, deployment, serving))


def _endpoints(cluster: str, found: tuple[Weighted, ...]) -> bytes:
    """Most clusters' endpoints stay as they are while others change; those of all nodes are too large to keep."""
    return _packed(cluster, found) if len(found) <= _KEPT_ENDPOINTS else pack(load_assignment(cluster, found))


@lru_cache(maxsize=4096)
def _packed(cluster: str, found: tuple[Weighted, ...]) -> bytes:
    return pack(load_assignment(cluster, found))


def _by_name(messages: Iterable[Any]) -> Resources:
    return {message.name: pack(message) for message in messages}

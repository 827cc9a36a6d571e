"""Requests for one deployment that another one serves, and copies: fallbacks and mirrors. The gateway alone does it."""

from __future__ import annotations

from collections.abc import Iterator

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, routable
from coordinator.xds.readiness import Serving, is_available, shares


def fallbacks(state: State, deployment: routing_pb2.Deployment) -> list[routing_pb2.Deployment]:
    """The fallbacks that are deployed, in order. One that was removed meanwhile is passed over."""
    return [state.deployments[name] for name in deployment.policy.fallbacks if name in state.deployments]


def stand_in(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> routing_pb2.Deployment | None:
    """The deployment itself while any replica of it is ready, else the first fallback of which that is true.

    Coordinators decide it, and not Envoy's aggregate clusters: those run the filters of the aggregate and not of the
    member that they chose (envoyproxy/envoy issue 29318), so nobody would write the fallback's name into the request.
    """
    each = [deployment, *fallbacks(state, deployment)]
    return next((one for one in each if is_available(state, one, serving)), None)


def mirrored(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> list[tuple[str, float]]:
    """(version, percent of the requests) of the mirror; empty when there is none or nothing of it is ready."""
    mirror = deployment.policy.mirror
    if mirror.version:
        ready = mirror.version in state.target_weights.get(deployment.name, ()) and serving.of(
            deployment.name, mirror.version
        )
        return [(mirror.version, mirror.percent)] if ready else []
    other = state.deployments.get(mirror.deployment)
    if not deployment.policy.HasField("mirror") or other is None or not is_available(state, other, serving):
        return []
    found = shares(state, other, serving)
    total = sum(weight for _, weight in found)
    return [(version, mirror.percent * weight / total) for version, weight in found]


def borrowed_cluster(name: str, other: str, version: str, *, http: bool = False) -> str:
    """Name of the cluster with another deployment's endpoints, for requests that say `name`."""
    return f"{other}/{version}/as/{name}{'/http' if http else ''}"


def borrowed(state: State, deployment: routing_pb2.Deployment) -> Iterator[tuple[routing_pb2.Deployment, str]]:
    """(other deployment, version) of everything that may serve this deployment's requests in its place or copies."""
    others = {each.name: each for each in fallbacks(state, deployment)}
    mirror = state.deployments.get(deployment.policy.mirror.deployment)
    if mirror is not None:
        others[mirror.name] = mirror
    for _, other in sorted(others.items()):
        yield from ((other, version) for version, _ in routable(state, other))

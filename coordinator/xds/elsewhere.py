"""Requests for one deployment that another one serves: fallbacks and mirrors. The gateway alone can do it."""

from __future__ import annotations

from collections.abc import Iterator

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.clusters.aggregate.v3 import cluster_pb2 as aggregate_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, routable
from coordinator.xds.readiness import Serving, is_available, shares
from coordinator.xds.snapshot import packed_any


def fallbacks(state: State, deployment: routing_pb2.Deployment) -> list[routing_pb2.Deployment]:
    """The fallbacks that are deployed, in order. One that was removed meanwhile is passed over."""
    return [state.deployments[name] for name in deployment.policy.fallbacks if name in state.deployments]


def can_answer(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> bool:
    """Whether the gateway has any replica for the deployment's requests, its fallbacks' included."""
    each = [deployment, *fallbacks(state, deployment)]
    return any(is_available(state, one, serving) for one in each)


def mirrored(state: State, deployment: routing_pb2.Deployment, serving: Serving) -> list[tuple[str, float]]:
    """(version, percent of the requests) of the mirror; empty when there is none or nothing of it is ready."""
    mirror = deployment.policy.mirror
    other = state.deployments.get(mirror.deployment)
    if not deployment.policy.HasField("mirror") or other is None or not is_available(state, other, serving):
        return []
    found = shares(state, other, serving)
    total = sum(weight for _, weight in found)
    return [(version, mirror.percent * weight / total) for version, weight in found]


def borrowed_cluster(name: str, other: str, version: str, *, http: bool = False) -> str:
    """Name of the cluster with another deployment's endpoints, for requests that say `name`."""
    return f"{other}/{version}/as/{name}{'/http' if http else ''}"


def chain_cluster(name: str, version: str, *, http: bool = False) -> str:
    """Name of the cluster that tries a version's own endpoints first and its deployment's fallbacks next."""
    return f"{name}/{version}/chain{'/http' if http else ''}"


def borrowed(state: State, deployment: routing_pb2.Deployment) -> Iterator[tuple[routing_pb2.Deployment, str]]:
    """(other deployment, version) of everything that may serve this deployment's requests in its place or copies."""
    others = {each.name: each for each in fallbacks(state, deployment)}
    mirror = state.deployments.get(deployment.policy.mirror.deployment)
    if mirror is not None:
        others[mirror.name] = mirror
    for _, other in sorted(others.items()):
        yield from ((other, version) for version, _ in routable(state, other))


def chain(state: State, deployment: routing_pb2.Deployment, *, http: bool) -> list[str]:
    """The clusters of the fallbacks, in order; within one, the version with the larger share first."""
    return [
        borrowed_cluster(deployment.name, other.name, version, http=http)
        for other in fallbacks(state, deployment)
        for version, _ in sorted(routable(state, other), key=lambda each: -each[1])
    ]


def aggregate(name: str, members: list[str]) -> cluster_pb2.Cluster:
    """A cluster that takes the first of its members with a replica that is not left out."""
    cluster = cluster_pb2.Cluster(name=name, lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED)
    cluster.connect_timeout.seconds = 1
    cluster.cluster_type.name = "envoy.clusters.aggregate"
    cluster.cluster_type.typed_config.CopyFrom(packed_any(aggregate_pb2.ClusterConfig(clusters=members)))
    return cluster

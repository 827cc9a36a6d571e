"""Who has not acknowledged a deployment's configuration: pure, on what a stream was sent and what it said."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from envoy.config.route.v3 import route_pb2
from google.protobuf import any_pb2

from coordinator.xds.gateway_routes import GATEWAY_ROUTES
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, SHORT_NAMES, Snapshot
from coordinator.xds.subscriptions import TYPES, StreamState, Subscription, wanted_of

NOT_ASKED = "not asked for yet"
NOT_SENT = "not sent yet"
NOT_ACKNOWLEDGED = "sent, not acknowledged"


def unacknowledged(stream: StreamState, snapshot: Snapshot, name: str, revision: int) -> list[tuple[str, str]]:
    """(lds, rds, cds or eds; why) of what the client may not have of a deployment as of `revision`.

    `snapshot` is the newest for this kind of client, of at least that revision. What did not change since the client
    last acknowledged needs no new version. What the client acknowledged as of the revision or later counts, even while
    something newer is on its way: a mesh in which much changes is never without that.
    """
    found = []
    led_to = _led_to(stream, snapshot, name)
    for type_url in TYPES:
        sub = stream.types.get(type_url, Subscription())
        missing = _missing(type_url, sub, snapshot, name, revision)
        if missing:
            found.append((SHORT_NAMES[type_url], _why(sub, missing, wanted_of(type_url, sub, snapshot))))
        elif type_url in (CDS, EDS) and not led_to <= sub.names:
            found.append((SHORT_NAMES[type_url], NOT_ASKED))
    return found


def _led_to(stream: StreamState, snapshot: Snapshot, name: str) -> frozenset[str]:
    """The clusters that a program's routes lead to: it uses routes only once it has asked for all of these, and has
    them. A gateway asks for all clusters before it is sent routes."""
    routes = stream.types.get(RDS)
    resource = snapshot.resources[RDS].get(name) if routes is not None and name in routes.names else None
    return clusters_of(resource) if resource is not None else frozenset()


@functools.lru_cache(maxsize=1024)
def clusters_of(resource: bytes) -> frozenset[str]:
    """The clusters that a program's route configuration, serialized, leads to."""
    packed, routes = any_pb2.Any.FromString(resource), route_pb2.RouteConfiguration()
    packed.Unpack(routes)
    actions = [route.route for host in routes.virtual_hosts for route in host.routes]
    split = (each.name for action in actions for each in action.weighted_clusters.clusters)
    return frozenset((*split, *(action.cluster for action in actions if action.cluster)))


def _missing(type_url: str, sub: Subscription, snapshot: Snapshot, name: str, revision: int) -> list[str]:
    resources = snapshot.resources[type_url]
    asked = [each for each in (resources if sub.wildcard else sub.names) if _concerns(type_url, each, name)]
    wanted = wanted_of(type_url, sub, snapshot) if asked else {}
    acked_at = int(sub.acked_version or -1)
    return [
        each
        for each in asked
        if each in wanted
        and not (each not in sub.unacked and sub.sent.get(each) == wanted[each])
        and not (acked_at >= revision and each in sub.acked)
    ]


def _concerns(type_url: str, resource: str, name: str) -> bool:
    """Whether a resource has to do with a deployment. Clusters: <name>/<version>..., <other>/<version>/as/<name>..."""
    if type_url in (LDS, RDS):
        return resource in (name, GATEWAY_ROUTES)
    assert type_url in (CDS, EDS), "there are no other types"
    first, *rest = resource.split("/")
    return first == name or (len(rest) > 2 and rest[1:3] == ["as", name])


def _why(sub: Subscription, missing: Iterable[str], wanted: dict[str, bytes]) -> str:
    if sub.nack:
        return f"refused: {sub.nack}"
    if any(sub.sent.get(each) != wanted[each] for each in missing):
        return NOT_SENT
    return NOT_ACKNOWLEDGED

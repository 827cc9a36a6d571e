"""One client's ADS stream as plain values: what it asked for, what it has, and what it should be sent next.

State-of-the-world variant of the protocol. Source: Envoy documentation, "xDS REST and gRPC protocol".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2

from coordinator.xds.client_routes import absent_listener
from coordinator.xds.clusters import no_endpoints
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, Resources, Snapshot

TYPES = (CDS, EDS, LDS, RDS)
"""The order in which types are sent: what is pointed at goes before what points at it."""
ALL = "*"
"""Stands for every resource of a type."""
Watched = tuple[str, str]
"""(type URL, resource name or ALL)."""
WHOLE = frozenset((CDS, LDS))
"""Types whose responses list everything the client has asked for: what is missing from one does not exist."""


@dataclass
class Subscription:
    """One resource type of one stream."""

    names: frozenset[str] = frozenset()
    """Names asked for, without "*"."""
    wildcard: bool = False
    """Asked for all there are."""
    ever_named: bool = False
    """Asked for a name before: from then on no name at all means nothing, and not everything."""
    owed: bool = False
    """Asked for something since the last response: that is answered even when there is nothing to give."""
    sent: dict[str, bytes] = field(default_factory=dict)
    """What the client was given last, by name. Replaced, never changed in place."""
    acked: Mapping[str, bytes] = field(default_factory=dict)
    """What the client had been given when it last acknowledged, by name."""
    unacked: set[str] = field(default_factory=set)
    """What it was given since, whatever it said: it may have any of these, in any form it was sent."""
    nonce: str = ""
    sent_version: str = ""
    acked_version: str = ""
    nack: str = ""
    pending: bool = False
    """The last response is neither acknowledged nor refused yet."""


@dataclass(frozen=True)
class Response:
    """A response to send; `resources` are serialized Any messages."""

    type_url: str
    version: str
    nonce: str
    resources: tuple[bytes, ...]


class StreamState:
    """What one client has. `take` what it says, then send `next_response` until there is none."""

    def __init__(self) -> None:
        self.types: dict[str, Subscription] = {}
        self._nonces = 0

    def take(self, request: discovery_pb2.DiscoveryRequest) -> None:
        """Takes a request in: an acknowledgement or a refusal, and the names that the client wants from now on.

        The names count even when the request answers a response that a newer one has overtaken. A client may give a
        name up, drop what crossed on the way, and ask for the name again: it would wait for ever for what the server
        believes it has.
        """
        sub = self.types.setdefault(request.type_url, Subscription())
        if request.response_nonce and request.response_nonce == sub.nonce:
            _acknowledge(sub, request)
        before, first = sub.names, not sub.nonce and not sub.owed
        _subscribe(sub, frozenset(request.resource_names), request.type_url)
        if first or sub.names - before:
            sub.owed = True

    def watched(self, type_url: str) -> frozenset[Watched]:
        """What of a type concerns this client."""
        sub = self.types.get(type_url)
        if sub is None:
            return frozenset()
        return frozenset((type_url, name) for name in (sub.names | {ALL} if sub.wildcard else sub.names))

    def held_back(self, snapshot: Snapshot) -> bool:
        """Whether something waits for the client: to be asked after `next_response` gave None."""
        return any(sub.sent != wanted_of(type_url, sub, snapshot) for type_url, sub in self.types.items())

    def next_response(self, snapshot: Snapshot, *, patient: bool = True) -> Response | None:
        """The next thing this client should be sent to arrive at the snapshot, or None while there is nothing to say.

        Routes wait until the client has the clusters and endpoints that they may point at, and a cluster or its last
        endpoint goes away only after the routes: so no request ever meets half a change. With patient=False nothing
        waits any longer, but for clusters of a client that refused the newest routes: it goes on with those it had.
        """
        for type_url in TYPES:
            sub = self.types.get(type_url)
            if sub is None or (type_url == RDS and patient and not self._targets_settled()):
                continue
            wanted = wanted_of(type_url, sub, snapshot)
            if type_url == CDS and not self._routes_settled(snapshot, patient=patient):
                wanted = {**_leftovers(sub, snapshot.resources[CDS]), **wanted}
            if type_url == EDS and self._routes_to_come(snapshot, patient=patient):
                wanted = {**wanted, **_emptied(sub, wanted)}
            response = self._respond(type_url, sub, wanted, snapshot.version)
            if response is not None:
                return response
        return None

    def _respond(self, type_url: str, sub: Subscription, wanted: dict[str, bytes], version: str) -> Response | None:
        changed = {name: value for name, value in wanted.items() if sub.sent.get(name) != value}
        if type_url in WHOLE:
            if not (sub.owed or changed or sub.sent.keys() - wanted.keys()):
                return None
            listed = wanted
        else:
            listed = changed
            if not changed:
                sub.owed, sub.sent = False, wanted
                return None
        if type_url == CDS:
            self._forget_endpoints(changed)
        self._nonces += 1
        sub.owed, sub.sent, sub.pending = False, wanted, True
        sub.unacked.update(changed)
        sub.nonce, sub.sent_version = str(self._nonces), version
        return Response(type_url, version, sub.nonce, tuple(listed[name] for name in sorted(listed)))

    def _forget_endpoints(self, changed: Mapping[str, bytes]) -> None:
        """Envoy asks for the endpoints of a cluster that changed once more, and waits for them."""
        endpoints = self.types.get(EDS)
        if endpoints is not None and not endpoints.sent.keys().isdisjoint(changed):
            endpoints.sent = {name: value for name, value in endpoints.sent.items() if name not in changed}

    def _targets_settled(self) -> bool:
        """The client has answered for its clusters, has asked for the endpoints of all, and has those."""
        clusters, endpoints = self.types.get(CDS), self.types.get(EDS)
        if clusters is None:
            return True
        if clusters.pending:
            return False
        if clusters.nack:
            return True  # it will not ask for what it refused
        asked: frozenset[str] = endpoints.names if endpoints is not None else frozenset()
        return clusters.sent.keys() <= asked and not (endpoints is not None and endpoints.pending)

    def _routes_to_come(self, snapshot: Snapshot, *, patient: bool) -> bool:
        """The client has not taken the newest routes yet, is expected to, and has its time for it."""
        routes = self.types.get(RDS)
        return routes is not None and not routes.nack and not self._routes_settled(snapshot, patient=patient)

    def _routes_settled(self, snapshot: Snapshot, *, patient: bool) -> bool:
        """The client has taken the newest routes, or had its time to; one that refused them keeps those it had."""
        routes = self.types.get(RDS)
        if routes is None:
            return True
        if routes.nack:
            return False
        return not patient or (not routes.pending and routes.sent == wanted_of(RDS, routes, snapshot))


def wanted_of(type_url: str, sub: Subscription, snapshot: Snapshot) -> dict[str, bytes]:
    """What the client should have of a type, by name."""
    resources = snapshot.resources[type_url]
    if type_url == LDS:
        # Wildcard listeners are Envoy's way to ask for its own, of which there are none here.
        return {name: resources.get(name) or absent_listener(name) for name in sub.names}
    if sub.wildcard:
        return dict(resources)
    return {name: resources[name] for name in sub.names if name in resources}


def _leftovers(clusters: Subscription, now: Resources) -> dict[str, bytes]:
    """Clusters that the client has, still asks for, and that no longer exist."""
    return {
        name: value
        for name, value in clusters.sent.items()
        if name not in now and (clusters.wildcard or name in clusters.names)
    }


def _emptied(endpoints: Subscription, wanted: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the client has of each cluster that loses its last endpoint: the routes it has may still lead there."""
    return {
        name: held
        for name, held in endpoints.sent.items()
        if (new := wanted.get(name, held)) is not held and new != held and new == no_endpoints(name)
    }


def _acknowledge(sub: Subscription, request: discovery_pb2.DiscoveryRequest) -> None:
    sub.pending = False
    if request.HasField("error_detail"):
        sub.nack = request.error_detail.message or "refused without a reason"
    else:
        sub.nack, sub.acked_version = "", sub.sent_version
        sub.acked = sub.sent
        sub.unacked.clear()


def _subscribe(sub: Subscription, names: frozenset[str], type_url: str) -> None:
    sub.wildcard = type_url in WHOLE and (ALL in names or (not names and not sub.ever_named))
    sub.names = names - {ALL}
    sub.ever_named = sub.ever_named or bool(names)
    if not sub.wildcard and not sub.sent.keys() <= sub.names:
        sub.sent = _only(sub.names, sub.sent)
    if not sub.wildcard and not sub.acked.keys() <= sub.names:
        sub.acked = _only(sub.names, sub.acked)


def _only(names: frozenset[str], held: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: value for name, value in held.items() if name in names}

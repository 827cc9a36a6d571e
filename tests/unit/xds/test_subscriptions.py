"""One client's stream as plain values: what is sent, in which order, and what is not."""

from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from coordinator.xds.client_routes import absent_listener
from coordinator.xds.clusters import no_endpoints
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot
from coordinator.xds.subscriptions import Response, StreamState


def snapshot(version: str, **resources: dict[str, str]) -> Snapshot:
    """Resources by short type name; the values are any text."""
    types = {"lds": LDS, "rds": RDS, "cds": CDS, "eds": EDS}
    return Snapshot(
        version,
        {url: {name: text.encode() for name, text in resources.get(short, {}).items()} for short, url in types.items()},
    )


def ask(stream: StreamState, type_url: str, *names: str) -> None:
    stream.take(discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names))


def answer(stream: StreamState, response: Response, *names: str, nack: str = "") -> None:
    """Acknowledges a response, or refuses it, with the names wanted from now on."""
    request = discovery_pb2.DiscoveryRequest(
        type_url=response.type_url, resource_names=names, response_nonce=response.nonce, version_info=response.version
    )
    if nack:
        request.error_detail.CopyFrom(status_pb2.Status(code=3, message=nack))
    stream.take(request)


def send(stream: StreamState, now: Snapshot) -> Response:
    response = stream.next_response(now)
    assert response is not None
    return response


def test_a_name_that_does_not_exist_gets_a_listener_that_refuses() -> None:
    stream, now = StreamState(), snapshot("1", lds={"a": "A"})
    ask(stream, LDS, "a", "ghost")
    assert send(stream, now).resources == (b"A", absent_listener("ghost"))
    assert absent_listener("ghost") != absent_listener("other")


def test_a_wildcard_gets_all_clusters_and_no_listener() -> None:
    stream, now = StreamState(), snapshot("1", lds={"a": "A"}, cds={"x": "X", "y": "Y"})
    ask(stream, CDS)
    ask(stream, LDS)
    assert [send(stream, now).resources for _ in range(2)] == [(b"X", b"Y"), ()]
    assert stream.next_response(now) is None


def test_no_names_after_names_is_no_wildcard() -> None:
    stream, now = StreamState(), snapshot("1", cds={"x": "X", "y": "Y"})
    ask(stream, CDS, "x")
    answer(stream, send(stream, now))
    assert stream.next_response(now) is None
    assert stream.watched(CDS) == frozenset()


def test_equal_bytes_are_not_sent_again_whatever_the_version() -> None:
    stream = StreamState()
    ask(stream, LDS, "a")
    answer(stream, send(stream, snapshot("1", lds={"a": "A", "b": "B"})), "a")
    assert stream.next_response(snapshot("2", lds={"a": "A", "b": "changed"})) is None


def test_endpoints_are_sent_one_by_one_and_clusters_all_together() -> None:
    stream, now = StreamState(), snapshot("1", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"})
    ask(stream, CDS, "x", "y")
    ask(stream, EDS, "x", "y")
    assert [send(stream, now).resources for _ in range(2)] == [(b"X", b"Y"), (b"1", b"2")]
    later = snapshot("2", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "3"})
    assert send(stream, later).resources == (b"3",)
    assert stream.next_response(later) is None
    assert send(stream, snapshot("3", cds={"x": "X", "y": "Z"}, eds={"x": "1", "y": "3"})).resources == (b"X", b"Z")


def test_endpoints_of_a_changed_cluster_are_sent_again() -> None:
    stream, now = StreamState(), snapshot("1", cds={"x": "X"}, eds={"x": "1"})
    ask(stream, CDS)
    ask(stream, EDS, "x")
    assert [send(stream, now).type_url for _ in range(2)] == [CDS, EDS]
    later = snapshot("2", cds={"x": "changed"}, eds={"x": "1"})
    assert [send(stream, later).type_url for _ in range(2)] == [CDS, EDS]


def test_a_name_given_up_and_asked_for_again_is_sent_again() -> None:
    stream, now = StreamState(), snapshot("1", eds={"x": "1", "y": "2"})
    ask(stream, EDS, "x", "y")
    first = send(stream, now)
    answer(stream, first, "y")
    assert stream.watched(EDS) == {(EDS, "y")}
    answer(stream, first, "x", "y")
    assert send(stream, now).resources == (b"1",)


def test_a_refused_version_is_recorded_and_sent_again_only_when_it_changes() -> None:
    stream, now = StreamState(), snapshot("1", rds={"a": "bad"})
    ask(stream, RDS, "a")
    answer(stream, send(stream, now), "a", nack="no such cluster")
    sub = stream.types[RDS]
    assert (sub.nack, sub.acked_version, sub.sent_version) == ("no such cluster", "", "1")
    assert stream.next_response(now) is None
    answer(stream, send(stream, snapshot("2", rds={"a": "good"})), "a")
    assert (sub.nack, sub.acked_version) == ("", "2")


def test_an_answer_to_an_overtaken_response_acknowledges_nothing() -> None:
    stream = StreamState()
    ask(stream, EDS, "x")
    old = send(stream, snapshot("1", eds={"x": "1"}))
    new = send(stream, snapshot("2", eds={"x": "2"}))
    answer(stream, old, "x")
    assert stream.types[EDS].acked_version == ""
    answer(stream, new, "x")
    assert stream.types[EDS].acked_version == "2"


def test_a_name_given_up_and_asked_for_again_while_a_response_was_on_its_way_is_sent_again() -> None:
    stream = StreamState()
    ask(stream, EDS, "x", "y")
    old = send(stream, snapshot("1", eds={"x": "1", "y": "1"}))
    crossing = send(stream, snapshot("2", eds={"x": "2", "y": "2"}))
    answer(stream, old, "y")  # the client drops the x that is on its way
    answer(stream, old, "x", "y")
    assert send(stream, snapshot("2", eds={"x": "2", "y": "2"})).resources == (b"2",)
    assert crossing.resources == (b"2", b"2")


def test_routes_wait_until_the_client_has_what_they_point_at() -> None:
    stream, before = StreamState(), snapshot("1", cds={"x": "X"}, eds={"x": "1"}, rds={"r": "to x"})
    _connect_envoy(stream, before)
    after = snapshot("2", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "to x and y"})
    clusters = send(stream, after)
    assert (clusters.type_url, clusters.resources) == (CDS, (b"X", b"Y"))
    assert stream.next_response(after) is None
    answer(stream, clusters)
    assert stream.next_response(after) is None
    assert stream.held_back(after)
    ask(stream, EDS, "x", "y")
    endpoints = send(stream, after)
    assert (endpoints.type_url, endpoints.resources) == (EDS, (b"2",))
    assert stream.next_response(after) is None
    answer(stream, endpoints, "x", "y")
    assert send(stream, after).type_url == RDS
    assert not stream.held_back(after)


def test_routes_do_not_wait_for_a_client_that_refused_the_clusters_or_took_too_long() -> None:
    after = snapshot("2", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "new"})
    for nack, patient in (("bad cluster", True), ("", False)):
        stream = StreamState()
        _connect_envoy(stream, snapshot("1", cds={"x": "X"}, eds={"x": "1"}, rds={"r": "old"}))
        answer(stream, send(stream, after), nack=nack)
        response = stream.next_response(after, patient=patient)
        assert response is not None
        assert response.type_url == RDS


def test_a_cluster_goes_only_after_the_routes_that_pointed_at_it() -> None:
    stream = StreamState()
    _connect_envoy(stream, snapshot("1", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "to x and y"}))
    after = snapshot("2", cds={"x": "X"}, eds={"x": "1"}, rds={"r": "to x"})
    routes = send(stream, after)
    assert routes.type_url == RDS
    assert stream.next_response(after) is None
    answer(stream, routes, "r")
    clusters = send(stream, after)
    assert (clusters.type_url, clusters.resources) == (CDS, (b"X",))
    assert not stream.held_back(after)


def test_the_last_endpoint_goes_only_after_the_routes_that_led_to_it() -> None:
    stream, empty = StreamState(), no_endpoints("y").decode()
    before = snapshot("1", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "to x and y"})
    _connect_envoy(stream, before)
    after = snapshot("2", cds={"x": "X", "y": "Y"}, eds={"x": "1 and 3", "y": empty}, rds={"r": "to x"})
    endpoints = send(stream, after)
    assert (endpoints.type_url, endpoints.resources) == (EDS, (b"1 and 3",)), "what is added goes first"
    answer(stream, endpoints, "x", "y")
    routes = send(stream, after)
    assert routes.type_url == RDS
    assert stream.next_response(after) is None
    assert stream.held_back(after)
    answer(stream, routes, "r")
    assert send(stream, after).resources == (no_endpoints("y"),)
    assert not stream.held_back(after)


def test_the_last_endpoint_goes_at_once_where_no_routes_are_to_come() -> None:
    empty = no_endpoints("y").decode()
    before = snapshot("1", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "to x and y"})
    same = snapshot("2", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": empty}, rds={"r": "to x and y"})
    other = snapshot("2", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": empty}, rds={"r": "to x"})
    stream = StreamState()
    _connect_envoy(stream, before)
    assert send(stream, same).type_url == EDS, "the routes stay"
    stream = StreamState()
    _connect_envoy(stream, before)
    routes = send(stream, other)
    unanswered = stream.next_response(other, patient=False)
    assert unanswered is not None
    assert unanswered.type_url == EDS, "the client takes too long"
    stream = StreamState()
    _connect_envoy(stream, before)
    routes = send(stream, other)
    answer(stream, routes, "r", nack="bad")
    assert send(stream, other).type_url == EDS, "the client refused them"


def test_a_cluster_that_is_gone_keeps_its_endpoints_until_the_routes_are_taken() -> None:
    stream = StreamState()
    _connect_envoy(stream, snapshot("1", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "to x and y"}))
    after = snapshot("2", cds={"x": "X"}, eds={"x": "3"}, rds={"r": "to x"})
    endpoints = send(stream, after)
    assert (endpoints.type_url, endpoints.resources) == (EDS, (b"3",)), "nothing is said of y"
    answer(stream, endpoints, "x", "y")
    routes = send(stream, after)
    assert routes.type_url == RDS
    answer(stream, routes, "r")
    assert send(stream, after).resources == (b"X",)


def _connect_envoy(stream: StreamState, now: Snapshot) -> None:
    """Subscribes to everything and acknowledges it, as Envoy does."""
    ask(stream, CDS)
    answer(stream, send(stream, now))
    names = tuple(now.resources[CDS])
    ask(stream, EDS, *names)
    answer(stream, send(stream, now), *names)
    ask(stream, RDS, "r")
    answer(stream, send(stream, now), "r")
    assert stream.next_response(now) is None


def test_clusters_stay_while_the_client_refuses_the_routes_that_would_leave_them() -> None:
    stream = StreamState()
    _connect_envoy(stream, snapshot("1", cds={"x": "X", "y": "Y"}, eds={"x": "1", "y": "2"}, rds={"r": "to x and y"}))
    after = snapshot("2", cds={"x": "X"}, eds={"x": "1"}, rds={"r": "too long"})
    answer(stream, send(stream, after), "r", nack="the route is not valid")
    assert stream.next_response(after) is None, "it still routes to y"
    assert stream.next_response(after, patient=False) is None, "however long it takes"
    more = snapshot("3", cds={"x": "X", "z": "Z"}, eds={"x": "1", "z": "3"}, rds={"r": "too long"})
    assert send(stream, more).resources == (b"X", b"Y", b"Z")
    good = snapshot("4", cds={"x": "X"}, eds={"x": "1"}, rds={"r": "to x"})
    routes = stream.next_response(good, patient=False)
    assert routes is not None
    assert routes.type_url == RDS
    assert stream.next_response(good, patient=False) is None, "not yet taken"
    answer(stream, routes, "r")
    assert send(stream, good).resources == (b"X",)

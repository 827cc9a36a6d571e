"""Who has acknowledged a deployment's configuration: on one stream, with plain values."""

from __future__ import annotations

from envoy.config.route.v3 import route_pb2
from hypothesis import given
from hypothesis import strategies as st

from coordinator.xds.pending import NOT_ACKNOWLEDGED, NOT_ASKED, NOT_SENT, unacknowledged
from coordinator.xds.snapshot import CDS, EDS, RDS, SHORT_NAMES, Snapshot, pack
from coordinator.xds.subscriptions import StreamState
from tests.unit.xds.test_subscriptions import answer, ask, send, snapshot

TYPES = (CDS, EDS, RDS)


def program(now: Snapshot) -> StreamState:
    """A gRPC program on xds:///m that has everything."""
    stream = StreamState()
    for type_url, names in ((RDS, ("m",)), (CDS, ("m/1",)), (EDS, ("m/1",))):
        ask(stream, type_url, *names)
        answer(stream, send(stream, now), *names)
    assert stream.next_response(now) is None
    return stream


def routes(*clusters: str, text: str = "") -> bytes:
    """m's routes, which lead to the clusters."""
    found = route_pb2.RouteConfiguration(name="m", most_specific_header_mutations_wins=bool(text))
    host = found.virtual_hosts.add(name=text)
    for cluster in clusters:
        host.routes.add().route.cluster = cluster
    return pack(found)


def of(version: int, text: str = "", routes_to: tuple[str, ...] = ("m/1",)) -> Snapshot:
    """A snapshot in which m's resources hold `text`, beside those of another deployment that are always new."""
    mine = {"m/1": text, "n/1": str(version)}
    found = snapshot(str(version), cds=mine, eds=mine)
    return Snapshot(found.version, {**found.resources, RDS: {"m": routes(*routes_to, text=text), "n": b""}})


def test_what_did_not_change_needs_no_new_version() -> None:
    stream = program(of(1))
    assert unacknowledged(stream, of(7), "m", 7) == []


def test_a_client_is_missing_until_it_has_said_yes_to_each_type() -> None:
    stream, now = program(of(1)), of(2, "new")
    assert unacknowledged(stream, now, "m", 2) == [("cds", NOT_SENT), ("eds", NOT_SENT), ("rds", NOT_SENT)]
    clusters = send(stream, now)
    assert unacknowledged(stream, now, "m", 2)[0] == ("cds", NOT_ACKNOWLEDGED)
    answer(stream, clusters, "m/1")
    assert unacknowledged(stream, now, "m", 2) == [("eds", NOT_SENT), ("rds", NOT_SENT)]
    answer(stream, send(stream, now), "m/1")
    answer(stream, send(stream, now), "m")
    assert unacknowledged(stream, now, "m", 2) == []
    assert unacknowledged(stream, now, "n", 2) == [], "it watches nothing of n"


def test_a_refusal_says_why() -> None:
    stream, now = program(of(1)), of(2)
    now = Snapshot("2", {**now.resources, RDS: {"m": routes("m/1", text="bad")}})
    answer(stream, send(stream, now), "m", nack="no such cluster")
    assert unacknowledged(stream, now, "m", 2) == [("rds", "refused: no such cluster")]


def test_a_later_version_that_is_on_its_way_does_not_undo_an_acknowledgement() -> None:
    stream, now = program(of(1)), of(2, "new")
    while (response := stream.next_response(now)) is not None:
        answer(stream, response, *stream.types[response.type_url].names)
    send(stream, of(3, "newer"))
    assert unacknowledged(stream, of(3, "newer"), "m", 2) == []
    assert unacknowledged(stream, of(3, "newer"), "m", 3)[0] == ("cds", NOT_ACKNOWLEDGED)


def test_what_was_sent_and_taken_back_before_it_was_acknowledged_still_counts() -> None:
    stream, there, back = program(of(1)), of(2, "new"), of(3)
    clusters = send(stream, there)
    assert ("cds", NOT_SENT) in unacknowledged(stream, back, "m", 3), "the bytes are those that it acknowledged first"
    again = send(stream, back)
    answer(stream, clusters, "m/1")
    assert ("cds", NOT_ACKNOWLEDGED) in unacknowledged(stream, back, "m", 3), "it has said yes to the one before"
    answer(stream, again, "m/1")
    assert unacknowledged(stream, back, "m", 3) == [("eds", NOT_SENT)], "the changed cluster asks for them once more"


def test_routes_to_a_cluster_that_the_program_has_not_asked_for_are_not_in_use() -> None:
    stream, now = program(of(1)), of(2, routes_to=("m/1", "m/2"))
    now = Snapshot("2", {**now.resources, CDS: {"m/1": b"", "m/2": b""}, EDS: {"m/1": b"", "m/2": b""}})
    answer(stream, send(stream, now), "m")
    assert unacknowledged(stream, now, "m", 2) == [("cds", NOT_ASKED), ("eds", NOT_ASKED)]
    ask(stream, CDS, "m/1", "m/2")
    assert unacknowledged(stream, now, "m", 2) == [("cds", NOT_SENT), ("eds", NOT_ASKED)]
    answer(stream, send(stream, now), "m/1", "m/2")
    ask(stream, EDS, "m/1", "m/2")
    answer(stream, send(stream, now), "m/1", "m/2")
    assert unacknowledged(stream, now, "m", 2) == []


def test_gateways_watch_everything() -> None:
    stream, now = StreamState(), snapshot("1", cds={"m/1": "", "n/1/as/m": ""}, eds={"m/1": "", "n/1/as/m": ""})
    now = Snapshot("1", {**now.resources, RDS: {"gateway/routes": b"1"}})
    ask(stream, CDS)
    answer(stream, send(stream, now))
    ask(stream, EDS, "m/1", "n/1/as/m")
    assert unacknowledged(stream, now, "m", 1) == [("eds", NOT_SENT)]
    answer(stream, send(stream, now), "m/1", "n/1/as/m")
    ask(stream, RDS, "gateway/routes")
    send(stream, now)
    assert unacknowledged(stream, now, "m", 1) == [("rds", NOT_ACKNOWLEDGED)]
    borrowed = {"m/1": "", "n/1/as/m": "moved"}
    later = Snapshot("2", {**now.resources, CDS: now.resources[CDS], EDS: snapshot("2", eds=borrowed).resources[EDS]})
    assert ("eds", NOT_SENT) in unacknowledged(stream, later, "m", 2)


def test_a_client_that_says_something_odd_is_not_believed() -> None:
    stream, now = program(of(1)), of(2, "new")
    response = send(stream, now)
    odd = type(response)(response.type_url, "garbage", response.nonce, response.resources)
    answer(stream, odd, "m/1")
    assert stream.types[CDS].acked_version == "2"
    assert ("cds", NOT_SENT) not in unacknowledged(stream, now, "m", 2)


@given(st.lists(st.tuples(st.sampled_from(["publish", "send", "ack", "nack"]), st.integers(0, 2)), max_size=40))
def test_nobody_counts_who_may_hold_anything_older(acts: list[tuple[str, int]]) -> None:
    """Against a client that applies what it acknowledges: when nothing is missing, it holds what is newest, or was."""
    stream, history = program(of(1)), [of(1)]
    holds = {type_url: history[0].resources[type_url] for type_url in TYPES}
    flying: list[tuple[object, dict[str, bytes]]] = []
    for act, value in acts:
        newest = history[-1]
        if act == "publish":
            history.append(of(len(history) + 1, str(value)))
        elif act == "send" and (response := stream.next_response(newest, patient=value > 0)) is not None:
            flying.append((response, dict(stream.types[response.type_url].sent)))
        elif act in ("ack", "nack") and flying:
            _settle(stream, holds, flying, refuse=act == "nack")
    since = max(1, len(history) - 1)
    if not flying and not unacknowledged(stream, history[-1], "m", since):
        for type_url, name in ((CDS, "m/1"), (EDS, "m/1"), (RDS, "m")):
            assert holds[type_url][name] in {each.resources[type_url][name] for each in history[since - 1 :]}


def _settle(stream: StreamState, holds: dict, flying: list, *, refuse: bool) -> None:  # type: ignore[type-arg]
    """The client answers the oldest response in flight: it takes it, or refuses it and keeps what it had."""
    response, content = flying.pop(0)
    names = ("m",) if response.type_url == RDS else ("m/1",)
    assert response.type_url in SHORT_NAMES
    answer(stream, response, *names, nack="no" if refuse else "")
    if not refuse:
        holds[response.type_url] = content

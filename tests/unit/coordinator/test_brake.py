"""The brake and the rule of who takes requests, on plain data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from coordinator.brake import takes_requests, vanished, why_braked
from coordinator.judge import condemned
from coordinator.prober import orphans, silent_nodes
from coordinator.state import State

READY = membership_pb2.NODE_STATE_READY
SUSPECT = membership_pb2.NODE_STATE_SUSPECT
DEAD = membership_pb2.NODE_STATE_DEAD
UNASKED = membership_pb2.PROBE_UNSPECIFIED
ANSWERS = membership_pb2.PROBE_ANSWERS
REFUSED = membership_pb2.PROBE_REFUSED
SILENT = membership_pb2.PROBE_SILENT

Node = membership_pb2.Node


def node(name: str, state: int = READY, probe: int = UNASKED, holder: str = "c1") -> Node:
    return Node(id=name, epoch=1, state=state, probe=probe, coordinator_id=holder)  # type: ignore[arg-type]


def state_of(*leased: Node, gone: tuple[Node, ...] = (), share: float = 0.5) -> State:
    nodes = {each.id: each for each in leased}
    return State(nodes=nodes, members={**nodes, **{each.id: each for each in gone}}, brake_share=share)


@pytest.mark.parametrize(
    ("state", "probe", "leased", "braked", "taken"),
    [
        (READY, UNASKED, True, False, True),
        (membership_pb2.NODE_STATE_JOINING, UNASKED, True, False, False),
        (membership_pb2.NODE_STATE_DRAINING, UNASKED, True, False, False),
        (SUSPECT, ANSWERS, True, False, True),
        (SUSPECT, REFUSED, True, True, False),
        (SUSPECT, SILENT, True, False, False),
        (SUSPECT, SILENT, True, True, True),
        # Its coordinator died with it, or all were away for longer than the leases: what it said last.
        (READY, UNASKED, False, False, True),
        (READY, REFUSED, False, True, False),
        (READY, SILENT, False, False, False),
        (READY, SILENT, False, True, True),
        (DEAD, ANSWERS, False, False, True),
        (DEAD, SILENT, False, True, False),
        (DEAD, UNASKED, False, True, False),
    ],
)
def test_who_takes_requests(state: int, probe: int, leased: bool, braked: bool, taken: bool) -> None:
    assert takes_requests(node("n", state, probe), leased=leased, braked=braked) is taken


def test_the_brake_holds_while_more_than_the_share_is_silent() -> None:
    three = [node(f"n{i}", SUSPECT, SILENT) for i in range(3)]
    two_of_four = state_of(*three[:2], node("a"), node("b"))
    assert not two_of_four.braked
    assert sorted(two_of_four.answering) == ["a", "b"]
    three_of_four = state_of(*three, node("a"))
    assert three_of_four.braked.startswith("3 of 4 nodes are silent at once (n0, n1, n2)")
    assert sorted(three_of_four.answering) == ["a", "n0", "n1", "n2"]


def test_proof_and_judgement_release_the_brake() -> None:
    gone = tuple(node(f"n{i}", READY, SILENT) for i in range(3))
    assert state_of(node("a"), gone=gone).braked
    refusing = tuple(node(f"n{i}", READY, REFUSED) for i in range(2))
    assert not state_of(node("a"), gone=(*refusing, gone[2])).braked
    forgotten = state_of(node("a"), node("b"), gone=gone[:1])
    assert not forgotten.braked


def test_one_silent_node_is_never_a_mass_failure() -> None:
    assert not state_of(node("n", SUSPECT, SILENT)).braked


def test_nobody_is_judged_dead_while_braked_or_unasked() -> None:
    gone = tuple(node(f"n{i}", READY, SILENT) for i in range(3))
    assert not condemned(state_of(node("a"), gone=gone))
    assert not condemned(state_of(node("a"), node("b"), gone=(node("n"),)))
    assert [each.id for each in condemned(state_of(node("a"), node("b"), gone=gone[:1]))] == ["n0"]
    # The dead are no news: they do not count as silent again.
    dead = tuple(node(f"d{i}", DEAD, SILENT) for i in range(5))
    assert [each.id for each in condemned(state_of(node("a"), node("b"), gone=(*dead, gone[0])))] == ["n0"]


_nodes = st.builds(
    lambda state, probe, leased: (state, probe, leased),
    st.sampled_from([READY, SUSPECT, DEAD, membership_pb2.NODE_STATE_JOINING, membership_pb2.NODE_STATE_DRAINING]),
    st.sampled_from([UNASKED, ANSWERS, REFUSED, SILENT]),
    st.booleans(),
)


@given(st.lists(_nodes, max_size=12), st.floats(0.1, 1.0))
def test_the_brake_only_ever_adds_endpoints_and_never_a_refusing_one(
    drawn: list[tuple[int, int, bool]], share: float
) -> None:
    members = {f"n{i}": node(f"n{i}", state, probe) for i, (state, probe, _) in enumerate(drawn)}
    nodes = {
        name: each
        for (name, each), (state, _, leased) in zip(members.items(), drawn, strict=True)
        if leased and state != DEAD
    }
    state = State(nodes=nodes, members=members, brake_share=share)
    for name, each in members.items():
        leased = name in nodes
        free, held = (takes_requests(each, leased=leased, braked=braked) for braked in (False, True))
        assert held or not free
        if each.probe == REFUSED and not (leased and each.state == READY):
            assert not held
    gone = vanished(nodes, members)
    counted = [each for each in members.values() if each.state != DEAD]
    assert bool(state.braked) == (len(gone) >= 2 and len(gone) > share * len(counted))
    assert bool(why_braked(nodes, members, 1.0)) is False
    if state.braked:
        silent = {name for name in gone if members[name].probe == SILENT and members[name].state in (READY, SUSPECT)}
        assert silent <= set(state.answering)
        assert not condemned(state)


def test_who_asks_whom() -> None:
    """The holder asks its own; the leader asks those whose holder is gone, and those without a lease."""
    own, others, orphan = (
        node("own", SUSPECT),
        node("others", SUSPECT, holder="c2"),
        node("orphan", SUSPECT, holder="c9"),
    )
    absent, dead, serving_dead = node("absent"), node("dead", DEAD, SILENT), node("still", DEAD, ANSWERS)
    state = State(
        nodes={each.id: each for each in (own, others, orphan, node("well"))},
        members={each.id: each for each in (own, others, orphan, node("well"), absent, dead, serving_dead)},
        assignments={"still": frozenset({("m", "1.0.0")}), "dead": frozenset({("m", "1.0.0")})},
        coordinators={"c1": cluster_pb2.Coordinator(), "c2": cluster_pb2.Coordinator()},
    )
    assert [each.id for each in silent_nodes(state, "c1", leads=False)] == ["own"]
    assert [each.id for each in silent_nodes(state, "c2", leads=True)] == ["absent", "orphan", "others", "still"]


def test_who_has_lost_its_session() -> None:
    state = State(
        nodes={each.id: each for each in (node("held"), node("lost"), node("foreign", holder="c9"))},
        coordinators={"c1": cluster_pb2.Coordinator()},
    )
    assert [each.id for each in orphans(state, "c1", {"held"}, leads=False)] == ["lost"]
    assert [each.id for each in orphans(state, "c2", set(), leads=True)] == ["foreign"]

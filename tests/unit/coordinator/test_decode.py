"""The mirror's pure half: any history of changes gives the state that its last list would."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.decode import advance, encode_assignment
from coordinator.etcd import KeyValue
from coordinator.placement import place
from coordinator.state import State, routable
from meshkit.errors import DataLossError
from tests.unit.coordinator.test_placement import carried_out, deployment, node, state_of, version

VALUES = {
    keys.node("n1"): keys.encode(membership_pb2.Node(id="n1", epoch=7)),
    keys.member("n1"): keys.encode(membership_pb2.Node(id="n1")),
    keys.version("m", "1.0.0"): keys.encode(registry_pb2.ModelVersion(name="m", version="1.0.0")),
    keys.deployment("m"): keys.encode(routing_pb2.Deployment(name="m")),
    keys.assignment("n1"): encode_assignment([("m", "1.0.0")]),
    keys.LEADER: b"c1",
    "/aimesh/v1/from-the-future/x": b"anything",
}
histories = st.lists(st.tuples(st.sampled_from(sorted(VALUES)), st.booleans()), max_size=30)


@given(histories, st.integers(0, 30))
def test_steps_and_lists_agree(history: list[tuple[str, bool]], cut: int) -> None:
    changes = [
        KeyValue(key, VALUES[key] if present else None, revision)
        for revision, (key, present) in enumerate(history, start=1)
    ]
    stepped = advance(advance(State(), cut, changes[:cut]), len(changes), changes[cut:])
    last = {change.key: change for change in changes}
    listed = advance(State(), len(changes), [kv for kv in last.values() if kv.value is not None])
    for field in ("nodes", "members", "versions", "deployments", "assignments", "assignment_revisions", "leader"):
        assert getattr(stepped, field) == getattr(listed, field)


def test_states_are_never_changed_in_place() -> None:
    before = advance(State(), 1, [KeyValue(key, value, 1) for key, value in VALUES.items()])
    after = advance(before, 2, [KeyValue(key, None, 2) for key in VALUES])
    assert before.nodes["n1"].epoch == 7
    assert before.assignments == {"n1": {("m", "1.0.0")}}
    assert (after.nodes, after.leader) == ({}, "")


def test_unknown_fields_of_a_newer_version_are_passed_over() -> None:
    change = KeyValue(keys.node("n1"), b'{"id": "n1", "from_the_future": {"x": 1}}', 1)
    assert advance(State(), 1, [change]).nodes["n1"].id == "n1"


def test_a_version_being_replaced_answers_until_its_successor_does() -> None:
    state = state_of([node("a")], [version("m"), version("m", "2.0.0")], [deployment("m", 1)])
    state = carried_out(state, place(state))
    successor = deployment("m", 1, "2.0.0")
    assert routable(state, state.deployments["m"]) == [("1.0.0", 1)]
    assert routable(state, successor) == [("1.0.0", 1)]
    state = state_of([node("a")], [version("m", "2.0.0")], [successor])
    assert routable(state, successor) == [("2.0.0", 1)], "nothing answers: the target says why"
    state = carried_out(state, place(state))
    assert routable(state, successor) == [("2.0.0", 1)]


def test_while_a_new_version_comes_up_both_answer_by_their_replicas() -> None:
    state = state_of([node(n) for n in "abc"], [version("m"), version("m", "2.0.0")], [deployment("m", 3)])
    state = carried_out(state, place(state))
    state = replace(state, deployments={"m": deployment("m", 3, "2.0.0")})
    state = carried_out(state, place(state))
    assert routable(state, state.deployments["m"]) == [("2.0.0", 1), ("1.0.0", 2)]


def test_a_damaged_value_is_named_with_what_to_do() -> None:
    with pytest.raises(DataLossError, match=r"etcd key /aimesh/v1/nodes/n1 .*") as damaged:
        advance(State(), 1, [KeyValue(keys.node("n1"), b"{not json", 1)])
    assert "etcdctl del /aimesh/v1/nodes/n1" in damaged.value.hint

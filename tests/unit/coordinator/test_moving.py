"""Replicas on their way out: of drained nodes, of dead ones whose Triton answers, and those that fail to load."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from coordinator.failures import MOST_S, FailureWatch
from coordinator.placement import place
from coordinator.roster import MOST_FAILED_NODES
from coordinator.state import State, serving_nodes
from tests.unit.coordinator.test_placement import carried_out, deployment, node, state_of, vanished, version

KEY = ("m", "1.0.0")


def running(replicas: int = 1, *nodes: membership_pb2.Node) -> State:
    state = state_of(list(nodes) or [node("a"), node("b"), node("c")], [version("m")], [deployment("m", replicas)])
    return carried_out(state, place(state))


def holders(state: State) -> list[str]:
    return sorted(name for name, held in state.assignments.items() if KEY in held)


def failed(state: State, *names: str, remembered: bool = True) -> State:
    """The state once the model's load failed on these nodes."""
    nodes = dict(state.nodes)
    for name in names:
        nodes[name] = membership_pb2.Node()
        nodes[name].CopyFrom(state.nodes[name])
        for model in nodes[name].report.models:
            model.state, model.message = membership_pb2.MODEL_STATE_FAILED, "out of memory"
    known = {
        (name, *KEY): membership_pb2.LoadFailure(node_id=name, name=KEY[0], version=KEY[1], message="out of memory")
        for name in names
    }
    return replace(state, nodes=nodes, failures={**state.failures, **(known if remembered else {})})


def test_a_drained_nodes_replica_stays_until_another_answers() -> None:
    state = replace(running(), drains={"a": 1})
    assert holders(state) == ["a"]
    both = replace(state, assignments=place(state).assignments)
    assert holders(both) == ["a", "b"]
    assert holders(replace(both, assignments=place(carried_out(both, place(both), ready=False)).assignments)) == [
        "a",
        "b",
    ]
    after = carried_out(both, place(both))
    assert holders(replace(after, assignments=place(after).assignments)) == ["b"]
    assert place(replace(after, assignments=place(after).assignments)).assignments == {"b": {KEY}}


def test_a_drained_node_keeps_what_has_nowhere_to_go_and_says_why() -> None:
    state = replace(running(1, node("a"), node("b", memory=0)), drains={"a": 1})
    placed = place(state)
    assert placed.assignments == {"a": {KEY}}
    assert {(each.node, each.limit) for each in placed.rejections[KEY]} == {("a", "drained"), ("b", "memory")}
    undrained = place(replace(state, drains={}))
    assert undrained.assignments == {"a": {KEY}}
    assert not undrained.rejections


def test_a_dead_node_whose_triton_answers_serves_until_it_is_replaced() -> None:
    state = running()
    gone = vanished(state, "a", probe=membership_pb2.PROBE_ANSWERS)
    assert [each.id for each in serving_nodes(gone, *KEY)] == ["a"]
    moved = replace(gone, assignments=place(gone).assignments)
    assert holders(moved) == ["a", "b"]
    answering = carried_out(moved, place(moved))
    assert holders(replace(answering, assignments=place(answering).assignments)) == ["b"]
    alone = vanished(running(1, node("a")), "a", probe=membership_pb2.PROBE_ANSWERS)
    assert place(alone).assignments == {"a": {KEY}}, "the last working endpoint is never taken away"


def test_a_replica_that_fails_moves_once_and_does_not_come_back() -> None:
    state = failed(running(), "a")
    moved = replace(state, assignments=place(state).assignments)
    assert holders(moved) == ["b"], "nothing is lost when a replica that never answered goes"
    assert place(carried_out(moved, place(moved))).assignments == {"b": {KEY}}


def test_a_version_that_fails_everywhere_rests() -> None:
    state = running(1, *(node(name) for name in "abcde"))
    seen = []
    for _ in range(8):
        (where,) = holders(state)
        seen.append(where)
        state = failed(state, where)
        state = replace(state, assignments=place(state).assignments)
        state = carried_out(state, place(state), ready=False)
    assert len(set(seen)) == MOST_FAILED_NODES
    assert len(set(seen[MOST_FAILED_NODES - 1 :])) == 1


def test_with_nowhere_else_to_go_a_failed_node_is_tried_again() -> None:
    state = failed(running(1, node("a"), node("b")), "a")
    state = replace(state, assignments=place(state).assignments)
    state = vanished(state, "b")
    assert place(state).assignments == {"a": {KEY}}
    assert place(replace(state, assignments=place(state).assignments)).assignments == {"a": {KEY}}


def test_a_node_that_joined_anew_may_try_again() -> None:
    state = failed(running(), "a", "b")
    state.nodes["a"].epoch = 7
    moved = place(replace(state, assignments={}))
    assert list(moved.assignments) == ["a"]


@given(
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(1, 4),
)
def test_draining_ends_and_never_lowers_what_answers(room: list[bool], drained: list[bool], replicas: int) -> None:
    nodes = [node(f"n{i}", memory=1 if fits else 0) for i, fits in enumerate(room)]
    state = running(replicas, *nodes)
    served = len(serving_nodes(state, *KEY))
    state = replace(state, drains={each.id: 1 for each, out in zip(nodes, drained, strict=False) if out})
    for _ in range(len(nodes) + 2):
        state = carried_out(state, place(state))
        assert min(replicas, served) <= len(serving_nodes(state, *KEY))
    assert place(state).assignments == state.assignments, "it comes to rest"
    open_nodes = sum(fits and each.id not in state.drains for each, fits in zip(nodes, room, strict=True))
    kept = [name for name in holders(state) if name in state.drains]
    assert len(kept) == max(0, min(replicas, served) - open_nodes)


def test_failures_are_counted_by_tries_and_by_time() -> None:
    loading = failed(running(), "a", remembered=False)
    for model in loading.nodes["a"].report.models:
        model.state = membership_pb2.MODEL_STATE_LOADING
    failing = failed(running(), "a", remembered=False)
    watch = FailureWatch()
    seen = [watch.observe(each, at)[0] for at, each in enumerate((failing, failing, loading, failing, loading))]
    assert seen == [[]] * 5, "the same failure seen again is no new one"
    (due,), _ = watch.observe(failing, 5.0)
    assert (due.node_id, due.name, due.version, due.message) == ("a", *KEY, "out of memory")
    slow = FailureWatch()
    assert not slow.observe(failing, 0.0)[0]
    assert slow.observe(failing, MOST_S)[0]
    assert not slow.observe(failed(failing, "a"), MOST_S + 1)[0], "it is remembered already"


def test_failures_are_forgiven() -> None:
    watch, state = FailureWatch(), failed(running(), "a")
    assert not watch.observe(state, 0.0)[1]
    ready = replace(running(), failures=state.failures)
    undeployed = replace(state, deployments={})
    elsewhere = replace(state, failures={("gone", *KEY): membership_pb2.LoadFailure()})
    assert [watch.observe(each, 0.0)[1] for each in (ready, undeployed)] == [[("a", *KEY)]] * 2
    assert watch.observe(elsewhere, 0.0)[1] == [("gone", *KEY)]

"""Two versions that are both targets: neither ever answers in the other's place, and replicas move one by one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.placement import place
from coordinator.state import State, routable, serving_nodes
from coordinator.xds.clusters import endpoints, grpc_cluster
from coordinator.xds.readiness import find_serving
from tests.unit.coordinator.test_placement import carried_out, node, state_of, version

OLD, NEW = ("m", "1.0.0"), ("m", "2.0.0")
READY, LOADING, UNLOADING = (
    membership_pb2.MODEL_STATE_READY,
    membership_pb2.MODEL_STATE_LOADING,
    membership_pb2.MODEL_STATE_UNLOADING,
)


def targets(old: tuple[int, int], new: tuple[int, int]) -> dict[str, routing_pb2.Deployment]:
    """(replicas, weight) of each."""
    found = [
        routing_pb2.Target(version=key[1], replicas=replicas, weight=weight)
        for key, (replicas, weight) in ((OLD, old), (NEW, new))
    ]
    return {"m": routing_pb2.Deployment(name="m", targets=found)}


def running(count: int, old: tuple[int, int], new: tuple[int, int]) -> State:
    """`count` nodes with room for one replica each, and what was wanted of them carried out."""
    nodes = [node(f"n{number}", memory=1) for number in range(count)]
    state = state_of(nodes, [version("m"), version("m", "2.0.0")], [])
    return settled(replace(state, deployments=targets(old, new)))


def settled(state: State) -> State:
    """The state once nothing is left to do."""
    for _ in range(20):
        state = carried_out(state, place(state))
    assert place(state).assignments == state.assignments
    return state


def decided(state: State) -> State:
    """The leader writes what it decides; no agent has acted."""
    return replace(state, assignments=place(state).assignments)


def acted(state: State, node_id: str) -> State:
    """One agent takes its next step with m, and reports it."""
    found = membership_pb2.Node()
    found.CopyFrom(state.nodes[node_id])
    wanted = dict(state.assignments.get(node_id, ())).get("m")
    models = found.report.models
    if not models and wanted:
        models.add(name="m", version=wanted, state=LOADING)
    elif models and models[0].version != wanted:
        if models[0].state == UNLOADING:
            del models[:]
        else:
            models[0].state = UNLOADING
    elif models:
        models[0].state = READY
    changed = {node_id: found}
    return replace(state, nodes={**state.nodes, **changed}, members={**state.members, **changed})


def holders(state: State, key: tuple[str, str]) -> list[str]:
    return sorted(node_id for node_id, held in state.assignments.items() if key in held)


def test_lowered_replicas_release_that_many_those_that_do_not_answer_first() -> None:
    state = running(4, (3, 75), (1, 25))
    silent = holders(state, OLD)[0]
    state.nodes[silent].report.models[0].state = LOADING
    lowered = decided(replace(state, deployments=targets((2, 75), (1, 25))))
    assert holders(lowered, OLD) == holders(state, OLD)[1:]
    assert holders(lowered, NEW) == holders(state, NEW)
    none = decided(replace(state, deployments=targets((0, 0), (1, 25))))
    assert (holders(none, OLD), holders(none, NEW)) == ([], holders(state, NEW))
    assert not serving_nodes(none, *OLD), "its endpoints are out with the same write"


def test_a_released_node_is_free_for_the_other_version_once_it_has_let_go() -> None:
    state = running(2, (2, 100), (0, 0))
    released = decided(replace(state, deployments=targets((1, 100), (1, 0))))
    (left,) = holders(released, OLD)
    (freed,) = {"n0", "n1"} - {left}
    assert holders(released, NEW) == [], "not in the same decision"
    rejected = {each.node: each.message for each in place(released).rejections[NEW]}
    assert rejected[freed] == "node has not let go of m 1.0.0 yet"
    unloading = acted(released, freed)
    assert holders(decided(unloading), NEW) == [], "it still unloads"
    assert holders(decided(acted(unloading, freed)), NEW) == [freed]


def test_the_same_version_may_come_back_at_once() -> None:
    state = running(1, (1, 100), (0, 0))
    released = decided(replace(state, deployments=targets((0, 0), (0, 0))))
    assert holders(decided(replace(released, deployments=targets((1, 100), (0, 0)))), OLD) == ["n0"]


def test_a_node_that_switches_answers_for_neither_of_two_targets_in_the_others_place() -> None:
    state = running(2, (2, 50), (0, 0))
    for each in state.nodes.values():
        each.address = "127.0.0.1"
    crossed = replace(state, deployments=targets((1, 50), (1, 50)), assignments={"n0": {OLD}, "n1": {NEW}})  # type: ignore[dict-item]
    assert [each.id for each in serving_nodes(crossed, *OLD)] == ["n0"]
    found = dict(endpoints(crossed, find_serving(crossed)))
    assert [each.owner for each in found[grpc_cluster(*OLD)]] == ["n0"]
    assert found[grpc_cluster(*NEW)] == ()


def test_a_version_that_is_no_target_answers_until_its_successor_does_if_that_has_a_weight() -> None:
    state = running(1, (1, 100), (0, 0))
    for weight, answering in ((100, ["n0"]), (0, [])):
        replaced = replace(state, assignments={"n0": frozenset({NEW})})
        only = routing_pb2.Target(version=NEW[1], replicas=1, weight=weight)
        replaced = replace(replaced, deployments={"m": routing_pb2.Deployment(name="m", targets=[only])})
        assert [each.id for each in serving_nodes(replaced, *OLD)] == answering


def test_a_third_version_retires_beside_a_target_without_replicas() -> None:
    state = running(3, (1, 100), (1, 0))
    oldest = version("m", "0.9.0")
    state = replace(
        state,
        versions={**state.versions, ("m", "0.9.0"): oldest},
        assignments={**state.assignments, "n2": frozenset({("m", "0.9.0")})},
        deployments=targets((0, 0), (1, 100)),
    )
    assert settled(state).assignments == {holders(state, NEW)[0]: {NEW}}


@settings(max_examples=150)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.integers(0, 4), max_size=40),
)
def test_no_request_for_one_version_can_be_answered_by_the_other(
    count: int, steps: list[tuple[int, int]], order: list[int]
) -> None:
    """Whatever is wanted next, and however slowly agents follow: who answers for a version was given it and has it."""
    state = running(count, (min(2, count), 100), (0, 0))
    for old, new in steps:
        state = replace(state, deployments=targets((old, 50 if old else 0), (new, 50 if new else 0)))
        for number in order:
            before, state = state, decided(state)
            _check(before, state)
            state = acted(state, f"n{number % count}")
            assert not _wrong(state)
    for _ in range(8 * count):
        before, state = state, decided(state)
        _check(before, state)
        for node_id in sorted(state.nodes):
            state = acted(state, node_id)
    old, new = steps[-1]
    assert len(holders(state, OLD)) + len(holders(state, NEW)) == min(count, old + new), "it comes to rest"
    assert len(holders(state, OLD)) <= old
    assert len(holders(state, NEW)) <= new
    weighted = {version for version, weight in routable(state, state.deployments["m"]) if weight}
    assert weighted == {key[1] for key, wanted in ((OLD, old), (NEW, new)) if wanted}


def _check(before: State, after: State) -> None:
    """What a decision may do to each node."""
    for node_id in before.nodes:
        was, now = before.assignments.get(node_id, frozenset()), after.assignments.get(node_id, frozenset())
        assert not (was and now) or was == now, f"{node_id} goes from {was} to {now} at once"
        if now and not was:
            reported = {(each.name, each.version) for each in before.nodes[node_id].report.models}
            assert reported <= now, f"{node_id} still has {reported}"
    for key, target in zip((OLD, NEW), after.deployments["m"].targets, strict=True):
        lost = len(holders(before, key)) - len(holders(after, key))
        assert lost <= max(0, len(holders(before, key)) - target.replicas)


def _wrong(state: State) -> list[str]:
    """Nodes that are said to answer for a version that they were not given, or do not have."""
    return [
        each.id
        for key in (OLD, NEW)
        for each in serving_nodes(state, *key)
        if key not in state.assignments.get(each.id, ()) or each.report.models[0].version != key[1]
    ]

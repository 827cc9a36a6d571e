"""Placement: what fits stays, nothing is overfilled, and whatever is missing has a reason."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.placement import Placement, place, target_status
from coordinator.roster import GIB
from coordinator.state import State


def node(node_id: str, memory: int = 8, gpus: tuple[int, ...] = (), **labels: str) -> membership_pb2.Node:
    return membership_pb2.Node(
        id=node_id,
        state=membership_pb2.NODE_STATE_READY,
        labels=labels,
        capacity=membership_pb2.Capacity(
            memory_bytes=memory * GIB, gpus=[membership_pb2.Gpu(memory_bytes=size * GIB) for size in gpus]
        ),
    )


def version(name: str, number: str = "1.0.0", memory: int = 1, gpu: int = 0) -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(
        name=name,
        version=number,
        requirements=registry_pb2.Requirements(memory_bytes=memory * GIB, gpu_memory_bytes=gpu * GIB),
    )


def deployment(name: str, replicas: int, *numbers: str) -> routing_pb2.Deployment:
    targets = [routing_pb2.Target(version=v, replicas=replicas, weight=1) for v in (numbers or ("1.0.0",))]
    return routing_pb2.Deployment(name=name, targets=targets)


def state_of(
    nodes: list[membership_pb2.Node],
    versions: list[registry_pb2.ModelVersion],
    deployments: list[routing_pb2.Deployment],
) -> State:
    return State(
        nodes={n.id: n for n in nodes},
        members={n.id: n for n in nodes},
        versions={(v.name, v.version): v for v in versions},
        deployments={d.name: d for d in deployments},
    )


def carried_out(state: State, placement: Placement, *, ready: bool = True) -> State:
    """The state after agents did what they were told; not ready, what is new to them is still loading."""
    nodes = {}
    for node_id, old in state.nodes.items():
        answered = {(m.name, m.version) for m in old.report.models if m.state == membership_pb2.MODEL_STATE_READY}
        fresh = membership_pb2.Node()
        fresh.CopyFrom(old)
        del fresh.report.models[:]
        for key in sorted(placement.assignments.get(node_id, ())):
            answers = ready or key in answered
            model_state = membership_pb2.MODEL_STATE_READY if answers else membership_pb2.MODEL_STATE_LOADING
            fresh.report.models.add(name=key[0], version=key[1], state=model_state)
        nodes[node_id] = fresh
    return replace(state, nodes=nodes, assignments=placement.assignments)


def vanished(
    state: State,
    *gone: str,
    state_then: membership_pb2.NodeState.ValueType = membership_pb2.NODE_STATE_DEAD,
    probe: membership_pb2.Probe.ValueType = membership_pb2.PROBE_SILENT,
) -> State:
    """The state after these nodes' leases lapsed: what is left of them is a member."""
    members = dict(state.nodes)
    for node_id in gone:
        members[node_id] = membership_pb2.Node()
        members[node_id].CopyFrom(state.nodes[node_id])
        members[node_id].state, members[node_id].probe = state_then, probe
    return replace(state, members=members, nodes={key: value for key, value in state.nodes.items() if key not in gone})


def test_replicas_spread_over_nodes() -> None:
    state = state_of([node("a"), node("b"), node("c")], [version("m")], [deployment("m", 2)])
    placed = place(state)
    assert sorted(placed.assignments) == ["a", "b"]
    assert not placed.rejections


def test_a_node_with_the_blobs_comes_first() -> None:
    holder = node("c", memory=2)
    holder.report.blobs.append("d" * 64)
    wanted = version("m")
    wanted.files.add(path="w", digest="d" * 64)
    placed = place(state_of([node("a"), node("b"), holder], [wanted], [deployment("m", 1)]))
    assert list(placed.assignments) == ["c"]


def test_missing_replicas_name_the_limit_on_every_node() -> None:
    gpu_node = node("g", gpus=(4,), zone="x")
    state = state_of([node("a", memory=1), gpu_node], [version("m", memory=2, gpu=8)], [deployment("m", 2)])
    placed = place(state)
    assert placed.assignments == {}
    reasons = {r.node: (r.limit, r.message) for r in placed.rejections[("m", "1.0.0")]}
    assert reasons["a"] == ("memory", "needs 2.00 GiB of memory, 1.00 GiB are free")
    assert reasons["g"] == ("gpu_memory", "needs 8.00 GiB on one GPU, the freest of 1 has 4.00 GiB")


def test_partial_placement_is_kept_and_shown() -> None:
    state = state_of([node("a")], [version("m")], [deployment("m", 3)])
    placed = place(state)
    status = target_status(state, placed, "m", state.deployments["m"].targets[0])
    assert (list(status.nodes), status.wanted, status.ready) == (["a"], 3, 0)


def test_labels_are_a_limit() -> None:
    picky = version("m")
    picky.requirements.node_labels["zone"] = "eu"
    placed = place(state_of([node("a", zone="us"), node("b", zone="eu")], [picky], [deployment("m", 2)]))
    assert list(placed.assignments) == ["b"]
    assert placed.rejections[("m", "1.0.0")][0].message == "label zone is 'us', not 'eu'"


def test_two_gpus_are_two_bins() -> None:
    state = state_of(
        [node("a", memory=64, gpus=(8, 8))],
        [version("m", gpu=6), version("n", gpu=6), version("o", gpu=6)],
        [deployment(name, 1) for name in "mno"],
    )
    placed = place(state)
    assert placed.assignments["a"] == {("m", "1.0.0"), ("n", "1.0.0")}
    assert placed.rejections[("o", "1.0.0")][0].limit == "gpu_memory"


def test_a_dead_nodes_replicas_move() -> None:
    state = state_of([node("a"), node("b")], [version("m")], [deployment("m", 1)])
    state = carried_out(state, place(state))
    (holder,) = state.assignments
    assert holder not in place(vanished(state, holder, probe=membership_pb2.PROBE_REFUSED)).assignments


def test_silent_members_keep_what_they_have_until_they_are_judged_dead() -> None:
    state = state_of([node("a"), node("b")], [version("m")], [deployment("m", 1)])
    state = carried_out(state, place(state))
    (holder,) = state.assignments
    restarted = replace(state, nodes={})
    assert place(restarted).assignments == {holder: {("m", "1.0.0")}}


def test_draining_nodes_lose_their_replicas() -> None:
    state = state_of([node("a"), node("b")], [version("m")], [deployment("m", 1)])
    state = carried_out(state, place(state))
    (holder,) = state.assignments
    state.nodes[holder].state = membership_pb2.NODE_STATE_DRAINING
    assert holder not in place(state).assignments


def test_a_new_version_takes_fresh_nodes_and_the_old_stays_until_it_answers() -> None:
    state = state_of([node("a"), node("b")], [version("m"), version("m", "2.0.0")], [deployment("m", 1)])
    state = carried_out(state, place(state))
    state = replace(state, deployments={"m": deployment("m", 1, "2.0.0")})
    during = place(state)
    assert {key for held in during.assignments.values() for key in held} == {("m", "1.0.0"), ("m", "2.0.0")}
    after = place(carried_out(state, during))
    assert {key for held in after.assignments.values() for key in held} == {("m", "2.0.0")}


def test_without_a_free_node_versions_are_replaced_one_node_at_a_time() -> None:
    nodes = [node("a", gpus=(4,)), node("b", gpus=(4,))]
    state = state_of(nodes, [version("m", gpu=3), version("m", "2.0.0", gpu=3)], [deployment("m", 2)])
    state = carried_out(state, place(state))
    state = replace(state, deployments={"m": deployment("m", 2, "2.0.0")})
    first = place(state)
    assert sorted(len(held) for held in first.assignments.values()) == [1, 1]
    assert sum(("m", "2.0.0") in held for held in first.assignments.values()) == 1
    loading = carried_out(state, first, ready=False)
    assert place(loading).assignments == first.assignments, "waits for the first to answer"
    last = place(carried_out(state, first))
    assert all(held == {("m", "2.0.0")} for held in last.assignments.values())


def test_nodes_whose_old_version_does_not_answer_are_handed_over_at_once() -> None:
    state = state_of([node("a"), node("b"), node("c")], [version("m"), version("m", "2.0.0")], [deployment("m", 3)])
    state = carried_out(state, place(state))
    del state.nodes["c"].report.models[:]
    rolling = replace(state, deployments={"m": deployment("m", 3, "2.0.0")})
    first = place(carried_out(rolling, place(rolling), ready=False))
    assert ("m", "2.0.0") in first.assignments["c"], "nothing is lost there"


def test_retired_versions_go_when_no_more_of_their_successors_can_be_placed() -> None:
    picky = version("m", "2.0.0")
    picky.requirements.node_labels["zone"] = "eu"
    state = state_of([node("a", zone="eu"), node("b"), node("c")], [version("m"), picky], [deployment("m", 3)])
    state = carried_out(state, place(state))
    state = replace(state, deployments={"m": deployment("m", 3, "2.0.0")})
    for _ in range(4):
        state = carried_out(state, place(state))
    assert place(state).assignments == {"a": {("m", "2.0.0")}}


def test_a_node_whose_triton_crashes_again_and_again_keeps_nothing() -> None:
    state = state_of([node("a"), node("b")], [version("m")], [deployment("m", 1)])
    state = carried_out(state, place(state))
    (holder,) = state.assignments
    state.nodes[holder].state = membership_pb2.NODE_STATE_JOINING
    state.nodes[holder].report.triton.state = membership_pb2.TRITON_STATE_CRASH_LOOP
    assert holder not in place(state).assignments


def test_scaling_down_keeps_the_replicas_that_answer() -> None:
    state = state_of([node("a"), node("b")], [version("m")], [deployment("m", 2)])
    state = carried_out(state, place(state))
    del state.nodes["a"].report.models[:]
    assert list(place(replace(state, deployments={"m": deployment("m", 1)})).assignments) == ["b"]


names = st.sampled_from(["m", "n", "o"])
clusters = st.builds(
    state_of,
    st.lists(
        st.builds(node, st.sampled_from("abcde"), memory=st.integers(1, 8), gpus=st.sampled_from([(), (4,), (4, 8)])),
        max_size=5,
    ),
    st.just(
        [
            version(n, v, memory=m, gpu=g)
            for n, m, g in (("m", 1, 0), ("n", 3, 0), ("o", 2, 4))
            for v in ("1.0.0", "2.0.0")
        ]
    ),
    st.lists(
        st.builds(deployment, names, st.integers(1, 4), st.sampled_from(["1.0.0", "2.0.0"])),
        max_size=3,
        unique_by=lambda d: d.name,
    ),
)


@given(clusters, clusters)
def test_placement_is_safe_and_settles(before: State, after: State) -> None:
    """From any assignment that stood before: limits hold, one version of a name a node, and it comes to rest."""
    state = replace(after, assignments=place(before).assignments)
    placed = place(state)
    for node_id, held in placed.assignments.items():
        capacity = state.nodes[node_id].capacity
        assert sum(state.versions[key].requirements.memory_bytes for key in held) <= capacity.memory_bytes
        gpu = sum(state.versions[key].requirements.gpu_memory_bytes for key in held)
        assert gpu <= sum(g.memory_bytes for g in capacity.gpus)
        assert len({name for name, _ in held}) == len(held)
        assert {name for name, _ in held} <= set(state.deployments)
    assert place(replace(state, assignments=placed.assignments)).assignments == placed.assignments
    for _ in range(12):
        state = carried_out(state, placed)
        placed = place(state)
    assert place(carried_out(state, placed)).assignments == placed.assignments
    for name, wanted in state.deployments.items():
        target = wanted.targets[0]
        count = sum((name, target.version) in held for held in placed.assignments.values())
        assert count <= target.replicas
        assert count == target.replicas or (name, target.version) in placed.rejections or not state.nodes

"""Plans: the steps of each strategy, the room they need, the time they take, and what cannot be done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.plan import plan, plan_back
from coordinator.state import State
from meshkit.errors import AimeshError, InvalidInputError, PreconditionError
from tests.unit.rollout.world import NAME, NEW, NEWER, OLD, World, begin, canary, spec, state_of, target

Shape = dict[str, tuple[int, int]]


def shapes(state: State, wanted: rollout_pb2.RolloutSpec) -> list[Shape]:
    """Of each step, {version: (replicas, weight)}."""
    return [
        {each.version: (each.replicas, each.weight) for each in step.targets} for step in plan(state, wanted).plan.steps
    ]


def test_a_canary_keeps_the_old_while_there_is_room() -> None:
    assert shapes(state_of(8, target(OLD, 4)), canary(5, 25, 50, 100)) == [
        {OLD: (4, 95), NEW: (1, 5)},
        {OLD: (4, 75), NEW: (1, 25)},
        {OLD: (4, 50), NEW: (2, 50)},
        {NEW: (4, 100)},
    ]
    assert shapes(state_of(4, target(OLD, 4)), canary(5, 50, 100)) == [
        {OLD: (3, 95), NEW: (1, 5)},
        {OLD: (2, 50), NEW: (2, 50)},
        {NEW: (4, 100)},
    ]


def test_rolling_goes_replica_by_replica() -> None:
    wanted = spec(rolling=rollout_pb2.Rolling(), max_surge=1)
    assert shapes(state_of(6, target(OLD, 3)), wanted) == [
        {OLD: (2, 67), NEW: (1, 33)},
        {OLD: (1, 33), NEW: (2, 67)},
        {NEW: (3, 100)},
    ]


def test_the_others_steps() -> None:
    state = state_of(6, target(OLD, 2))
    assert shapes(state, spec(blue_green=rollout_pb2.BlueGreen())) == [
        {OLD: (2, 0), NEW: (2, 100)},
        {NEW: (2, 100)},
    ]
    assert shapes(state, spec(shadow=rollout_pb2.Shadow(percent=50))) == [{OLD: (2, 100), NEW: (1, 0)}, {OLD: (2, 100)}]
    arms = [rollout_pb2.Arm(version=version, percent=share) for version, share in ((NEW, 60), (NEWER, 40))]
    assert shapes(state, spec("", experiment=rollout_pb2.Experiment(arms=arms, header="x-user"))) == [
        {OLD: (2, 0), NEW: (2, 60), NEWER: (1, 40)},
        {OLD: (2, 100)},
    ]


def test_a_version_that_nobody_asks_stays_as_it_is() -> None:
    state = state_of(6, target(OLD, 1), target(NEWER, 1, 0))
    assert shapes(state, canary(50, 100)) == [
        {OLD: (1, 50), NEWER: (1, 0), NEW: (1, 50)},
        {NEWER: (1, 0), NEW: (1, 100)},
    ]
    assert shapes(state, canary(50, 100, version=NEWER))[-1] == {NEWER: (1, 100)}, "one that is loaded already"


def test_times_come_from_the_plans_own_numbers() -> None:
    state = state_of(4, target(OLD, 1))
    measured = {(NAME, version): registry_pb2.Measured() for version in (OLD, NEW)}
    for each in measured.values():
        each.load_time.seconds = 20
    found = plan(replace(state, measured=measured), canary(5, 50, 100, hold_s=30)).plan
    assert found.time_to_promote.ToSeconds() in range(80, 90)
    assert found.time_to_roll_back.ToSeconds() in range(30, 100)
    assert "forward: 60 s of hold times before the last step" in found.reasons
    assert "forward: new replicas are waited for once, 20 s each as measured" in found.reasons
    assert "back: judged every 1 s" in found.reasons


@pytest.mark.parametrize(
    ("nodes", "replicas", "fields", "said"),
    [
        (1, 1, {}, r"m has one replica, and no node could take another beside it: n0: runs m 1\.0\.0"),
        (3, 2, {"blue_green": rollout_pb2.BlueGreen()}, "needs room for 2 replicas beside the 2 that run"),
        (3, 2, {"replicas": 4}, "4 more replicas are wanted, nodes could take 3"),
        (2, 2, {"max_unavailable": 0}, "there is no way to"),
        (3, 2, {"max_surge": 0, "max_unavailable": 0}, "there is no way to"),
    ],
)
def test_without_room_it_says_what_there_is(nodes: int, replicas: int, fields: dict[str, Any], said: str) -> None:
    wanted = spec(**{**({} if "blue_green" in fields else {"canary": rollout_pb2.Canary()}), **fields})
    with pytest.raises(PreconditionError, match=said) as refused:
        plan(state_of(nodes, target(OLD, replicas)), wanted)
    assert refused.value.reason == "ROLLOUT_NO_ROOM"


def test_one_replica_changes_in_place_when_that_is_accepted() -> None:
    mesh = World(state_of(1, target(OLD, 1)))
    mesh.start(canary(100, max_unavailable=1))
    mesh.run()
    assert mesh.weights() == {NEW: 100}


def test_what_is_split_or_changing_has_no_old_version() -> None:
    with pytest.raises(PreconditionError, match=r"split between versions \(1\.0\.0 = 50, 1\.2\.0 = 50\)"):
        plan(state_of(4, target(OLD, 1, 50), target(NEWER, 1, 50)), canary(100))
    state = state_of(4, target(OLD, 1))
    changing = replace(state, deployments={NAME: routing_pb2.Deployment(name=NAME, targets=[target(NEWER)])})
    with pytest.raises(PreconditionError, match=r"still being changed over: 1\.0\.0 has not gone yet"):
        plan(changing, canary(100))


def test_a_policy_that_would_not_fit_is_refused() -> None:
    matches = [routing_pb2.Match(header="x-tier", value="gold", version=OLD)]
    with pytest.raises(InvalidInputError, match=r"version '1\.0\.0' is not deployed"):
        plan(state_of(4, target(OLD, 1), matches=matches), canary(100))
    mirror = routing_pb2.Mirror(deployment="other", percent=1)
    with pytest.raises(PreconditionError, match="are copied to other already"):
        plan(state_of(4, target(OLD, 1), mirror=mirror), spec(shadow=rollout_pb2.Shadow()))


def test_what_programs_cannot_do_is_said() -> None:
    found = plan(state_of(4, target(OLD, 1)), spec(shadow=rollout_pb2.Shadow())).plan
    assert any("gRPC copies nothing" in warning for warning in found.warnings)


def test_the_way_back_of_one_that_succeeded() -> None:
    mesh = World(state_of(4, target(OLD, 2)))
    mesh.start(canary(50, 100))
    ended = mesh.run()
    mesh.state = begin(mesh.state, plan_back(mesh.state, ended), mesh.now_ns)
    mesh.run()
    assert mesh.deployment.targets == ended.before.targets


@given(
    nodes=st.integers(1, 12),
    replicas=st.integers(1, 6),
    steps=st.sets(st.integers(1, 99), max_size=5),
    surge=st.none() | st.integers(0, 3),
    unavailable=st.none() | st.integers(0, 3),
)
def test_a_plan_is_whole_or_says_why_not(
    nodes: int, replicas: int, steps: set[int], surge: int | None, unavailable: int | None
) -> None:
    wanted = canary(*sorted(steps), 100)
    if surge is not None:
        wanted.max_surge = surge
    if unavailable is not None:
        wanted.max_unavailable = unavailable
    state = state_of(nodes, target(OLD, min(nodes, replicas)))
    try:
        found = plan(state, wanted)
    except AimeshError as refused:
        assert refused.reason == "ROLLOUT_NO_ROOM"  # noqa: PT017
        return
    for step in found.plan.steps:
        assert sum(each.weight for each in step.targets) == 100
        assert sum(each.replicas for each in step.targets) <= nodes
        assert all(each.replicas for each in step.targets)
    assert found.plan.steps[-1].targets == [target(NEW, min(nodes, replicas))]

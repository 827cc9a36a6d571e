"""A rollout's course: each strategy forward and back, with and without room, and what makes it turn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.advance import advance
from coordinator.rollout.observe import observe
from coordinator.rollout.record import HELD, ROLLED_BACK, RUNNING, SUCCEEDED, Judged, back
from coordinator.state import State
from tests.unit.rollout.world import NAME, NEW, NEWER, OLD, SECOND, World, canary, spec, state_of, target

FAIL, PASS, UNTOLD = (
    rollout_pb2.VERDICT_FAIL,
    rollout_pb2.VERDICT_PASS,
    rollout_pb2.VERDICT_INCONCLUSIVE,
)


def world(nodes: int = 4, replicas: int = 2) -> World:
    return World(state_of(nodes, target(OLD, replicas)))


def test_a_canary_moves_its_weights_by_steps() -> None:
    mesh = world()
    mesh.start(canary(5, 50, 100))
    assert mesh.run().state == SUCCEEDED
    shares = [each.get(NEW, 0) for each in mesh.seen]
    assert sorted(set(shares)) == [0, 5, 50, 100]
    assert shares == sorted(shares)
    assert (mesh.weights(), mesh.replicas()) == ({NEW: 100}, {NEW: 2})
    assert [each.reason for each in mesh.rollout.decisions] == [
        "5 % for 1 s; nothing was judged",
        "50 % for 1 s; nothing was judged",
    ]


def test_weights_wait_for_every_client() -> None:
    mesh = world()
    mesh.start(canary(5, 100))
    for _ in range(50):
        mesh.lead()
        mesh.place()
        mesh.agents()
    assert mesh.weights() == {OLD: 100}
    assert "still to follow: client c1" in mesh.rollout.reason
    mesh.follow()
    mesh.lead()
    assert mesh.weights() == {OLD: 95, NEW: 5}


def test_without_room_an_old_replica_goes_first() -> None:
    mesh = world(nodes=2)
    mesh.start(canary(50, 100))
    mesh.run()
    assert (mesh.rollout.state, mesh.replicas()) == (SUCCEEDED, {NEW: 2})


def test_blue_green_switches_at_once_and_keeps_the_old() -> None:
    mesh = world()
    wanted = spec()
    wanted.blue_green.keep.seconds = 60
    mesh.start(wanted)
    while mesh.rollout.phase != rollout_pb2.PHASE_HOLDING:
        mesh.tick()
    assert (mesh.weights(), mesh.replicas()) == ({NEW: 100}, {OLD: 2, NEW: 2})
    mesh.state = _with(mesh, back(mesh.rollout, mesh.now_ns, "no"))
    mesh.lead()
    assert mesh.weights() == {OLD: 100}, "the first thing on the way back"
    mesh.run()
    assert mesh.deployment == mesh.rollout.before


def test_replicas_that_are_given_up_do_not_take_requests_back() -> None:
    """An abort just after the last step gave the old replicas up: they answer still, and will not in a moment."""
    mesh = world()
    mesh.start(canary(50, 100))
    while mesh.replicas().get(OLD) != 0:
        mesh.place()
        mesh.agents()
        mesh.follow()
        mesh.now_ns += SECOND
        mesh.lead()
    mesh.state = _with(mesh, back(mesh.rollout, mesh.now_ns, "no"))
    mesh.lead()
    assert mesh.weights() == {NEW: 100}
    mesh.run()
    assert mesh.deployment == mesh.rollout.before


def test_rolling_follows_its_replicas() -> None:
    mesh = world(nodes=5, replicas=4)
    mesh.start(spec(rolling=rollout_pb2.Rolling()))
    assert mesh.run().state == SUCCEEDED
    assert [each.get(NEW, 0) for each in mesh.seen if NEW in each][::2][:1] == [25]


def test_a_shadow_gets_copies_and_ends_as_it_was() -> None:
    mesh = world()
    wanted = spec()
    wanted.shadow.percent = 50
    wanted.shadow.duration.seconds = 5
    mesh.start(wanted)
    while mesh.rollout.phase != rollout_pb2.PHASE_HOLDING:
        mesh.tick()
    assert mesh.weights() == {OLD: 100}
    assert mesh.deployment.policy.mirror == routing_pb2.Mirror(version=NEW, percent=50)
    mesh.run()
    assert (mesh.rollout.state, mesh.deployment) == (SUCCEEDED, mesh.rollout.before)


def test_an_experiment_keeps_callers_and_ends_as_it_was() -> None:
    mesh = world(nodes=6)
    arms = [rollout_pb2.Arm(version=version, percent=share) for version, share in ((OLD, 50), (NEW, 30), (NEWER, 20))]
    wanted = spec("", experiment=rollout_pb2.Experiment(arms=arms, header="x-user"))
    mesh.start(wanted)
    while mesh.rollout.phase != rollout_pb2.PHASE_HOLDING:
        mesh.tick()
    assert mesh.weights() == {OLD: 50, NEW: 30, NEWER: 20}
    assert mesh.deployment.policy.sticky.header == "x-user"
    mesh.now_ns += 600 * SECOND
    mesh.run()
    assert (mesh.rollout.state, mesh.deployment) == (SUCCEEDED, mesh.rollout.before)


@pytest.mark.parametrize("nodes", [2, 3, 4])
@pytest.mark.parametrize("after", range(0, 60, 3))
def test_back_from_anywhere_restores_what_there_was(nodes: int, after: int) -> None:
    mesh = world(nodes=nodes)
    mesh.start(canary(5, 50, 100))
    for _ in range(after):
        mesh.tick()
    if mesh.over:
        return
    mesh.state = _with(mesh, back(mesh.rollout, mesh.now_ns, "worse"))
    mesh.run()
    assert (mesh.rollout.state, mesh.rollout.reason, mesh.deployment) == (ROLLED_BACK, "worse", mesh.rollout.before)


def test_a_worse_version_goes_back_and_says_why() -> None:
    mesh = world()
    mesh.start(canary(5, 100, hold_s=30, gates=rollout_pb2.Gates()))
    mesh.judged = Judged(FAIL, "error_rate 0.2 instead of 0", [rollout_pb2.Comparison(metric="error_rate", now=0.2)])
    mesh.run()
    assert (mesh.rollout.state, mesh.rollout.reason) == (ROLLED_BACK, "error_rate 0.2 instead of 0")
    (decision,) = mesh.rollout.decisions
    assert (decision.verdict, decision.comparisons[0].now) == (FAIL, 0.2)


@pytest.mark.parametrize(
    ("wish", "state"),
    [
        (rollout_pb2.INCONCLUSIVE_PROMOTE, SUCCEEDED),
        (rollout_pb2.INCONCLUSIVE_ROLL_BACK, ROLLED_BACK),
        (rollout_pb2.INCONCLUSIVE_UNSPECIFIED, HELD),
        (rollout_pb2.INCONCLUSIVE_HOLD, HELD),
    ],
)
def test_without_telling_it_does_what_was_asked(
    wish: rollout_pb2.Inconclusive.ValueType, state: rollout_pb2.RolloutState.ValueType
) -> None:
    mesh = world()
    mesh.start(canary(5, 100, gates=rollout_pb2.Gates(inconclusive=wish)))
    mesh.judged = Judged(UNTOLD, "too few requests")
    for _ in range(100):
        mesh.tick()
    assert mesh.rollout.state == state
    assert "too few requests" in mesh.rollout.decisions[0].reason


@pytest.mark.parametrize(("verdict", "state"), [(PASS, SUCCEEDED), (FAIL, ROLLED_BACK)])
def test_held_it_goes_on_when_there_is_telling(
    verdict: rollout_pb2.Verdict.ValueType, state: rollout_pb2.RolloutState.ValueType
) -> None:
    mesh = world()
    mesh.start(canary(5, 100, gates=rollout_pb2.Gates()))
    mesh.judged = Judged(UNTOLD, "too few requests")
    while mesh.rollout.state != HELD:
        mesh.tick()
    mesh.judged = Judged(verdict, "seen enough")
    assert mesh.run().state == state


def test_a_policy_that_fails_when_it_is_run_holds() -> None:
    mesh = world()
    mesh.start(canary(5, 100, hold_s=30, gates=rollout_pb2.Gates(rego="...")))
    mesh.judged = Judged(UNTOLD, broken="undefined function")
    for _ in range(40):
        mesh.tick()
    assert mesh.rollout.state == HELD
    assert "undefined function" in mesh.rollout.reason


def test_a_version_that_does_not_load_goes_back() -> None:
    mesh = world()
    mesh.broken = {NEW}
    mesh.start(canary(5, 100))
    mesh.run()
    assert mesh.rollout.state == ROLLED_BACK
    assert mesh.rollout.reason == "replicas did not come up in time: 0 of 1 replica of 1.1.0 answer"
    assert {share for weights in mesh.seen for share in weights} == {OLD}, "it never had a request"


def test_clients_that_never_follow_turn_it_back_and_do_not_keep_it() -> None:
    mesh = world()
    mesh.start(canary(50, 100))
    for _ in range(4000):
        mesh.lead()
        mesh.place()
        mesh.agents()
        mesh.now_ns += SECOND
    assert mesh.rollout.state == ROLLED_BACK
    assert "not followed in time: client c1" in mesh.rollout.reason


def test_the_watch_takes_back_what_gets_worse() -> None:
    mesh = world()
    wanted = canary(100, gates=rollout_pb2.Gates())
    wanted.watch.seconds = 60
    mesh.start(wanted)
    mesh.judged = Judged(PASS, "no worse")
    while mesh.rollout.phase != rollout_pb2.PHASE_WATCHING:
        mesh.tick()
    assert mesh.replicas() == {NEW: 2}
    mesh.judged = Judged(FAIL, "latency_p99_ms 300 instead of 20")
    mesh.run()
    assert (mesh.rollout.state, mesh.deployment) == (ROLLED_BACK, mesh.rollout.before)


def test_decisions_are_bounded_and_the_newest_stay() -> None:
    mesh = world()
    mesh.start(canary(5, 100))
    rollout = mesh.rollout
    for number in range(150):
        rollout = back(rollout, number, f"reason {number}")
    assert [rollout.decisions[0].reason, len(rollout.decisions)] == ["reason 50", 100]


def test_paused_and_over_nothing_happens() -> None:
    mesh = world()
    mesh.start(canary(5, 100))
    for state in (rollout_pb2.ROLLOUT_STATE_PAUSED, SUCCEEDED, ROLLED_BACK):
        mesh.rollout.state = state
        assert not mesh.lead()
    mesh.rollout.state = RUNNING
    found = advance(mesh.rollout, None, observe(mesh.state, mesh.rollout, 0))
    assert found is not None
    assert (found.rollout.state, found.rollout.reason) == (ROLLED_BACK, f"deployment {NAME} is gone")


def _with(mesh: World, rollout: rollout_pb2.Rollout) -> State:
    return replace(mesh.state, rollouts={NAME: rollout}, revision=mesh.state.revision + 1)

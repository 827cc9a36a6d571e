"""The next thing that a rollout does: a pure function of the rollout, its deployment and what is seen of both.

It is level-triggered: asked again after any crash, by any leader, it goes on from what is written.
"""

from __future__ import annotations

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.course import goal_of, is_over, rising, room_of, weighted
from coordinator.rollout.hold import failed, held, holding, watching
from coordinator.rollout.orders import Course, Kind, Move, Replicas, next_move
from coordinator.rollout.record import (
    ACKNOWLEDGING,
    DRAINING,
    HELD,
    HOLDING,
    LOADING,
    ROLLED_BACK,
    ROLLING_BACK,
    RUNNING,
    SUCCEEDED,
    WATCHING,
    Advance,
    Observed,
    as_before,
    awaiting,
    back,
    copy,
    ended,
    enter,
    some,
    success,
    told,
    watched,
)

BACK_PATIENCE_S = 30.0
"""On the way back, clients that do not acknowledge are not waited for any longer than this."""
_PHASES = {
    Kind.GROW: LOADING,
    Kind.LOAD: LOADING,
    Kind.STUCK: LOADING,
    Kind.ROUTE: ACKNOWLEDGING,
    Kind.SHRINK: DRAINING,
    Kind.DRAIN: DRAINING,
}


def advance(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment | None, seen: Observed) -> Advance | None:
    """The next thing to write, or None while something is awaited."""
    if is_over(rollout) or rollout.state == rollout_pb2.ROLLOUT_STATE_PAUSED:
        return None
    if deployment is None:
        return Advance(ended(rollout, seen, ROLLED_BACK, f"deployment {rollout.spec.name} is gone"))
    if rollout.state == HELD:
        return held(rollout, seen)
    if rollout.state == RUNNING and rollout.phase in (HOLDING, WATCHING):
        return holding(rollout, seen) if rollout.phase == HOLDING else watching(rollout, seen)
    if rollout.state == RUNNING and failed(seen) and (rollout.step == 0 or rollout.step < len(rollout.steps) - 1):
        assert seen.judged is not None
        return Advance(back(rollout, seen.now_ns, seen.judged.reason, seen.judged.comparisons))
    return _go_on(rollout, deployment, seen)


def _go_on(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment, seen: Observed) -> Advance | None:
    """One move towards the step's goal, or back."""
    is_back, late = rollout.state == ROLLING_BACK, _late(rollout, seen)
    if rollout.phase == ACKNOWLEDGING and not rollout.awaited_revision:
        return Advance(awaiting(rollout, seen))
    if rollout.phase == ACKNOWLEDGING and (seen.unacknowledged is None or seen.unacknowledged):
        waiting = f"still to follow: {some(seen.unacknowledged or ())}"
        if seen.unacknowledged is None or not late:
            return told(rollout, waiting) if seen.unacknowledged else None
        if not is_back:
            return Advance(back(rollout, seen.now_ns, f"not followed in time: {some(seen.unacknowledged)}"))
    move = next_move(_course(rollout, deployment, seen, ignore_stragglers=late and rollout.phase == DRAINING))
    if move.kind in (Kind.LOAD, Kind.STUCK) and not is_back and (broken := _broken(rollout, seen)):
        return Advance(back(rollout, seen.now_ns, broken))
    if late and rollout.phase == LOADING and move.kind in (Kind.LOAD, Kind.STUCK):
        if is_back:  # it must end: what there was is wanted again, and placement goes on trying
            return Advance(ended(rollout, seen, ROLLED_BACK, f"{rollout.reason}; {move.reason}"), rollout.before)
        return Advance(back(rollout, seen.now_ns, f"replicas did not come up in time: {move.reason}"))
    return _made(rollout, deployment, seen, move)


def _made(
    rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment, seen: Observed, move: Move
) -> Advance | None:
    """What a move comes to. Weights move, and replicas go, only once clients have what came before."""
    if move.kind == Kind.DONE:
        return _arrived(rollout, deployment, seen)
    eager = rollout.state == ROLLING_BACK and move.kind == Kind.ROUTE
    if move.kind in (Kind.ROUTE, Kind.SHRINK) and rollout.phase != ACKNOWLEDGING and not eager:
        return Advance(awaiting(rollout, seen))
    if move.deployment is None and rollout.phase == _PHASES[move.kind]:
        return told(rollout, move.reason)
    made = copy(rollout)
    made.awaited_revision = 0
    if move.reason and rollout.state == RUNNING:
        made.reason = move.reason
    enter(made, _PHASES[move.kind], seen.now_ns)
    return Advance(made, move.deployment)


def _arrived(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment, seen: Observed) -> Advance | None:
    """The deployment is as it is to be: the step holds, the next begins, or the rollout ends."""
    if rollout.phase == LOADING and deployment != goal_of(rollout):
        return Advance(awaiting(rollout, seen))
    goal = goal_of(rollout)
    tidied = goal if deployment != goal else None  # versions without replicas go, and order and times are the goal's
    if rollout.state == ROLLING_BACK:
        return Advance(ended(rollout, seen, ROLLED_BACK, rollout.reason), tidied)
    last = rollout.step == len(rollout.steps) - 1
    if last and (not rollout.spec.watch.ToNanoseconds() or as_before(rollout)):
        return Advance(ended(rollout, seen, SUCCEEDED, success(rollout)), tidied)
    made = copy(rollout)
    enter(made, WATCHING if last else HOLDING, seen.now_ns)
    percent = rollout.steps[rollout.step].percent
    made.reason = watched(rollout) if last else f"at {percent} %"
    return Advance(made, tidied)


def _course(
    rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment, seen: Observed, *, ignore_stragglers: bool
) -> Course:
    goal, is_back = goal_of(rollout), rollout.state == ROLLING_BACK
    taking_over = weighted(goal.targets) if is_back else rising(goal, rollout.before)
    found = dict(seen.replicas)
    if ignore_stragglers:
        wanted = {target.version: target.replicas for target in deployment.targets}
        found = {
            version: Replicas(each.serving, min(each.present, wanted.get(version, each.present)))
            for version, each in found.items()
        }
    return Course(deployment, goal, taking_over, room_of(rollout), found, eager=is_back)


def _broken(rollout: rollout_pb2.Rollout, seen: Observed) -> str:
    """Why the new version is hopeless; empty when it is not: it failed to load, and answers nowhere."""
    for version in sorted(rising(goal_of(rollout), rollout.before)):
        if seen.failures.get(version) and not seen.replicas.get(version, Replicas()).serving:
            return f"{version} does not load: {some(seen.failures[version])}"
    return ""


def _late(rollout: rollout_pb2.Rollout, seen: Observed) -> bool:
    limit = rollout.spec.step_timeout.ToNanoseconds()
    if rollout.state == ROLLING_BACK and rollout.phase == ACKNOWLEDGING:
        limit = min(limit, int(BACK_PATIENCE_S * 1e9))
    return seen.now_ns > rollout.since.ToNanoseconds() + limit

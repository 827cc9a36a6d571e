"""The next thing that a rollout does: a pure function of the rollout, its deployment and what is seen of both.

It is level-triggered: asked again after any crash, by any leader, it goes on from what is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf import timestamp_pb2

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.course import COMPARING, goal_of, hold_s, is_over, rising, room_of, weighted
from coordinator.rollout.orders import Course, Kind, Move, Replicas, next_move

MOST_DECISIONS = 100
BACK_PATIENCE_S = 30.0
"""On the way back, clients that do not acknowledge are not waited for any longer than this."""
_AWAITED_SHOWN = 3

ACKNOWLEDGING = rollout_pb2.PHASE_ACKNOWLEDGING
DRAINING = rollout_pb2.PHASE_DRAINING
HELD = rollout_pb2.ROLLOUT_STATE_HELD
HOLDING = rollout_pb2.PHASE_HOLDING
LOADING = rollout_pb2.PHASE_LOADING
ROLLED_BACK = rollout_pb2.ROLLOUT_STATE_ROLLED_BACK
ROLLING_BACK = rollout_pb2.ROLLOUT_STATE_ROLLING_BACK
RUNNING = rollout_pb2.ROLLOUT_STATE_RUNNING
SUCCEEDED = rollout_pb2.ROLLOUT_STATE_SUCCEEDED
WATCHING = rollout_pb2.PHASE_WATCHING
_PHASES = {
    Kind.GROW: LOADING,
    Kind.LOAD: LOADING,
    Kind.STUCK: LOADING,
    Kind.ROUTE: ACKNOWLEDGING,
    Kind.SHRINK: DRAINING,
    Kind.DRAIN: DRAINING,
}


@dataclass(frozen=True)
class Judged:
    """What a judgement came to."""

    verdict: rollout_pb2.Verdict.ValueType
    reason: str = ""
    comparisons: Sequence[rollout_pb2.Comparison] = ()
    broken: str = ""
    """Why there could be none: a policy that failed when it was run."""


@dataclass(frozen=True)
class Observed:
    """What is seen of a rollout at one moment."""

    now_ns: int
    """Nanoseconds since the epoch."""
    revision: int
    """etcd revision of the state that all of it was seen in."""
    replicas: Mapping[str, Replicas] = field(default_factory=dict)
    """By version."""
    failures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By version, "node: why" of each node on which it failed to load again and again."""
    unacknowledged: Sequence[str] | None = None
    """Who has not acknowledged the awaited revision, and what else is awaited; None when that was not asked."""
    judged: Judged | None = None
    """The judgement of the present step; None when there is nothing to judge, or by time alone."""


@dataclass(frozen=True)
class Advance:
    """What to write, in one transaction."""

    rollout: rollout_pb2.Rollout
    deployment: routing_pb2.Deployment | None = None
    """None when it stays as it is."""


def advance(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment | None, seen: Observed) -> Advance | None:
    """The next thing to write, or None while something is awaited."""
    if is_over(rollout) or rollout.state == rollout_pb2.ROLLOUT_STATE_PAUSED:
        return None
    if deployment is None:
        return Advance(_ended(rollout, seen, ROLLED_BACK, f"deployment {rollout.spec.name} is gone"))
    if rollout.state == HELD:
        return _held(rollout, seen)
    if rollout.state == RUNNING and rollout.phase in (HOLDING, WATCHING):
        return _hold(rollout, seen) if rollout.phase == HOLDING else _watch(rollout, seen)
    if rollout.state == RUNNING and _failed(seen) and rollout.step < len(rollout.steps) - 1:
        assert seen.judged is not None
        return Advance(back(rollout, seen.now_ns, seen.judged.reason, seen.judged.comparisons))
    return _go_on(rollout, deployment, seen)


def back(
    rollout: rollout_pb2.Rollout,
    now_ns: int,
    reason: str,
    comparisons: Sequence[rollout_pb2.Comparison] = (),
    by: str = "",
) -> rollout_pb2.Rollout:
    """The rollout from the moment on that it goes back."""
    made = decided(rollout, now_ns, rollout_pb2.VERDICT_FAIL, reason, comparisons, by)
    made.state, made.awaited_revision = ROLLING_BACK, 0
    _enter(made, LOADING, now_ns)
    return made


def decided(
    rollout: rollout_pb2.Rollout,
    now_ns: int,
    verdict: rollout_pb2.Verdict.ValueType,
    reason: str,
    comparisons: Sequence[rollout_pb2.Comparison] = (),
    by: str = "",
) -> rollout_pb2.Rollout:
    """A copy with one more decision, which is also its reason."""
    made = _copy(rollout)
    decision = made.decisions.add(
        at=_timestamp(now_ns), step=rollout.step, verdict=verdict, reason=reason, comparisons=comparisons, by=by
    )
    del made.decisions[: max(0, len(made.decisions) - MOST_DECISIONS)]
    made.reason = decision.reason
    return made


def at_step(rollout: rollout_pb2.Rollout, step: int, now_ns: int) -> rollout_pb2.Rollout:
    """A copy at the beginning of a step."""
    made = _copy(rollout)
    made.state, made.step, made.awaited_revision = RUNNING, step, 0
    _enter(made, LOADING, now_ns)
    return made


def _go_on(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment, seen: Observed) -> Advance | None:
    """One move towards the step's goal, or back."""
    is_back, late = rollout.state == ROLLING_BACK, _late(rollout, seen)
    if rollout.phase == ACKNOWLEDGING and not rollout.awaited_revision:
        return Advance(_awaiting(rollout, seen))
    if rollout.phase == ACKNOWLEDGING and (seen.unacknowledged is None or seen.unacknowledged):
        waiting = f"still to follow: {_some(seen.unacknowledged or ())}"
        if seen.unacknowledged is None or not late:
            return _told(rollout, waiting) if seen.unacknowledged else None
        if not is_back:
            return Advance(back(rollout, seen.now_ns, f"not followed in time: {_some(seen.unacknowledged)}"))
    move = next_move(_course(rollout, deployment, seen, ignore_stragglers=late and rollout.phase == DRAINING))
    if move.kind in (Kind.LOAD, Kind.STUCK) and not is_back and (broken := _broken(rollout, seen)):
        return Advance(back(rollout, seen.now_ns, broken))
    if late and rollout.phase == LOADING and move.kind in (Kind.LOAD, Kind.STUCK):
        if is_back:  # it must end: what there was is wanted again, and placement goes on trying
            return Advance(_ended(rollout, seen, ROLLED_BACK, f"{rollout.reason}; {move.reason}"), rollout.before)
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
        return Advance(_awaiting(rollout, seen))
    if move.deployment is None and rollout.phase == _PHASES[move.kind]:
        return _told(rollout, move.reason)
    made = _copy(rollout)
    made.awaited_revision = 0
    if move.reason and rollout.state == RUNNING:
        made.reason = move.reason
    _enter(made, _PHASES[move.kind], seen.now_ns)
    return Advance(made, move.deployment)


def _arrived(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment, seen: Observed) -> Advance | None:
    """The deployment is as it is to be: the step holds, the next begins, or the rollout ends."""
    if rollout.phase == LOADING and deployment != goal_of(rollout):
        return Advance(_awaiting(rollout, seen))
    goal = goal_of(rollout)
    tidied = goal if deployment != goal else None  # versions without replicas go, and order and times are the goal's
    if rollout.state == ROLLING_BACK:
        return Advance(_ended(rollout, seen, ROLLED_BACK, rollout.reason), tidied)
    last = rollout.step == len(rollout.steps) - 1
    if last and (not rollout.spec.watch.ToNanoseconds() or _as_before(rollout)):
        return Advance(_ended(rollout, seen, SUCCEEDED, _success(rollout)), tidied)
    made = _copy(rollout)
    _enter(made, WATCHING if last else HOLDING, seen.now_ns)
    percent = rollout.steps[rollout.step].percent
    made.reason = f"{rollout.spec.version} has all requests and is watched" if last else f"at {percent} %"
    return Advance(made, tidied)


def _hold(rollout: rollout_pb2.Rollout, seen: Observed) -> Advance | None:
    """Judges a step whose share has moved: back at once when it is worse, on when its time is over."""
    judged, now = seen.judged, seen.now_ns
    if judged is not None and judged.verdict == rollout_pb2.VERDICT_FAIL:
        return Advance(back(rollout, now, judged.reason, judged.comparisons))
    if judged is not None and judged.broken:
        return Advance(_into_hold(rollout, now, f"the policy could not be run: {judged.broken}", judged))
    hold = hold_s(rollout.steps[rollout.step])
    if now < rollout.since.ToNanoseconds() + hold * 1e9:
        return None
    if judged is None or judged.verdict == rollout_pb2.VERDICT_PASS:
        reason = judged.reason if judged is not None else _by_time(rollout, hold)
        return Advance(_on(rollout, now, rollout_pb2.VERDICT_PASS, reason, judged))
    if hold == 0:
        return Advance(_on(rollout, now, rollout_pb2.VERDICT_INCONCLUSIVE, "the step has no hold time", judged))
    return Advance(_untold(rollout, now, judged))


def _untold(rollout: rollout_pb2.Rollout, now: int, judged: Judged) -> rollout_pb2.Rollout:
    """A step whose time is over, and no telling."""
    wish, inconclusive = rollout.spec.gates.inconclusive, rollout_pb2.VERDICT_INCONCLUSIVE
    if rollout.spec.WhichOneof("strategy") in COMPARING:
        return _on(rollout, now, inconclusive, f"no telling: {judged.reason}", judged)
    if wish == rollout_pb2.INCONCLUSIVE_PROMOTE:
        return _on(rollout, now, inconclusive, f"goes on though there is no telling: {judged.reason}", judged)
    if wish == rollout_pb2.INCONCLUSIVE_ROLL_BACK:
        return back(rollout, now, f"goes back since there is no telling: {judged.reason}", judged.comparisons)
    return _into_hold(rollout, now, f"no telling: {judged.reason}", judged)


def _held(rollout: rollout_pb2.Rollout, seen: Observed) -> Advance | None:
    """Waits until there is telling, or a person decides."""
    judged = seen.judged
    if judged is None or judged.broken:
        return None
    if judged.verdict == rollout_pb2.VERDICT_FAIL:
        return Advance(back(rollout, seen.now_ns, judged.reason, judged.comparisons))
    if judged.verdict == rollout_pb2.VERDICT_PASS:
        return Advance(_on(rollout, seen.now_ns, rollout_pb2.VERDICT_PASS, judged.reason, judged))
    return None


def _watch(rollout: rollout_pb2.Rollout, seen: Observed) -> Advance | None:
    """The new version has everything: back when it gets worse, done when its time is over."""
    if _failed(seen):
        assert seen.judged is not None
        return Advance(back(rollout, seen.now_ns, f"got worse after it took over: {seen.judged.reason}"))
    if seen.now_ns < rollout.since.ToNanoseconds() + rollout.spec.watch.ToNanoseconds():
        return None
    return Advance(_ended(rollout, seen, SUCCEEDED, _success(rollout)))


def _on(
    rollout: rollout_pb2.Rollout,
    now: int,
    verdict: rollout_pb2.Verdict.ValueType,
    reason: str,
    judged: Judged | None,
) -> rollout_pb2.Rollout:
    """To the next step."""
    made = decided(rollout, now, verdict, reason, judged.comparisons if judged is not None else ())
    return at_step(made, rollout.step + 1, now)


def _into_hold(rollout: rollout_pb2.Rollout, now: int, reason: str, judged: Judged) -> rollout_pb2.Rollout:
    made = decided(rollout, now, rollout_pb2.VERDICT_INCONCLUSIVE, reason, judged.comparisons)
    made.state = HELD
    return made


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
            return f"{version} does not load: {_some(seen.failures[version])}"
    return ""


def _awaiting(rollout: rollout_pb2.Rollout, seen: Observed) -> rollout_pb2.Rollout:
    made = _copy(rollout)
    made.awaited_revision = seen.revision
    if made.phase != ACKNOWLEDGING:
        _enter(made, ACKNOWLEDGING, seen.now_ns)
    return made


def _told(rollout: rollout_pb2.Rollout, reason: str) -> Advance | None:
    """With the reason, when that is another one. On the way back the reason stays why it goes back."""
    if rollout.reason == reason or not reason or rollout.state == ROLLING_BACK:
        return None
    made = _copy(rollout)
    made.reason = reason
    return Advance(made)


def _ended(
    rollout: rollout_pb2.Rollout, seen: Observed, state: rollout_pb2.RolloutState.ValueType, reason: str
) -> rollout_pb2.Rollout:
    made = _copy(rollout)
    made.state, made.awaited_revision, made.reason = state, 0, reason
    _enter(made, rollout_pb2.PHASE_UNSPECIFIED, seen.now_ns)
    made.ended_at.CopyFrom(_timestamp(seen.now_ns))
    return made


def _success(rollout: rollout_pb2.Rollout) -> str:
    said = rollout.decisions[-1].reason if rollout.decisions else ""
    if _as_before(rollout):
        return f"compared, and as it was before; {said}" if said else "compared, and as it was before"
    return f"{rollout.spec.version} has all requests"


def _as_before(rollout: rollout_pb2.Rollout) -> bool:
    """Whether it ends as it was before: a comparison."""
    return rollout.steps[-1].targets == rollout.before.targets


def _by_time(rollout: rollout_pb2.Rollout, hold: float) -> str:
    return f"{rollout.steps[rollout.step].percent} % for {hold:g} s; nothing was judged"


def _failed(seen: Observed) -> bool:
    return seen.judged is not None and seen.judged.verdict == rollout_pb2.VERDICT_FAIL


def _late(rollout: rollout_pb2.Rollout, seen: Observed) -> bool:
    limit = rollout.spec.step_timeout.ToNanoseconds()
    if rollout.state == ROLLING_BACK and rollout.phase == ACKNOWLEDGING:
        limit = min(limit, int(BACK_PATIENCE_S * 1e9))
    return seen.now_ns > rollout.since.ToNanoseconds() + limit


def _enter(rollout: rollout_pb2.Rollout, phase: rollout_pb2.Phase.ValueType, now_ns: int) -> None:
    rollout.phase = phase
    rollout.since.CopyFrom(_timestamp(now_ns))


def _timestamp(now_ns: int) -> timestamp_pb2.Timestamp:
    made = timestamp_pb2.Timestamp()
    made.FromNanoseconds(now_ns)
    return made


def _copy(rollout: rollout_pb2.Rollout) -> rollout_pb2.Rollout:
    made = rollout_pb2.Rollout()
    made.CopyFrom(rollout)
    return made


def _some(names: Sequence[str]) -> str:
    more = len(names) - _AWAITED_SHOWN
    shown = ", ".join(names[:_AWAITED_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown

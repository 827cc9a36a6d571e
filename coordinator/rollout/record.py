"""What is written of a rollout: copies with one thing changed, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf import timestamp_pb2

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.orders import Replicas

MOST_DECISIONS = 100
_SHOWN = 3

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


@dataclass(frozen=True)
class Judged:
    """What a judgement came to."""

    verdict: rollout_pb2.Verdict.ValueType
    reason: str = ""
    comparisons: Sequence[rollout_pb2.Comparison] = ()
    broken: str = ""
    """Why there could be none: a policy that failed when it was run, a fault."""


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
    enter(made, LOADING, now_ns)
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
    made = copy(rollout)
    decision = made.decisions.add(
        at=timestamp(now_ns), step=rollout.step, verdict=verdict, reason=reason, comparisons=comparisons, by=by
    )
    del made.decisions[: max(0, len(made.decisions) - MOST_DECISIONS)]
    made.reason = decision.reason
    return made


def at_step(rollout: rollout_pb2.Rollout, step: int, now_ns: int) -> rollout_pb2.Rollout:
    """A copy at the beginning of a step."""
    made = copy(rollout)
    made.state, made.step, made.awaited_revision = RUNNING, step, 0
    enter(made, LOADING, now_ns)
    return made


def awaiting(rollout: rollout_pb2.Rollout, seen: Observed) -> rollout_pb2.Rollout:
    """A copy that waits until everybody has what is seen now."""
    made = copy(rollout)
    made.awaited_revision = seen.revision
    if made.phase != ACKNOWLEDGING:
        enter(made, ACKNOWLEDGING, seen.now_ns)
    return made


def told(rollout: rollout_pb2.Rollout, reason: str) -> Advance | None:
    """With the reason, when that is another one. On the way back the reason stays why it goes back."""
    if rollout.reason == reason or not reason or rollout.state == ROLLING_BACK:
        return None
    made = copy(rollout)
    made.reason = reason
    return Advance(made)


def ended(
    rollout: rollout_pb2.Rollout, seen: Observed, state: rollout_pb2.RolloutState.ValueType, reason: str
) -> rollout_pb2.Rollout:
    """A copy that is over."""
    made = copy(rollout)
    made.state, made.awaited_revision, made.reason = state, 0, reason
    enter(made, rollout_pb2.PHASE_UNSPECIFIED, seen.now_ns)
    made.ended_at.CopyFrom(timestamp(seen.now_ns))
    return made


def success(rollout: rollout_pb2.Rollout) -> str:
    """Why a rollout that went through is over."""
    said = rollout.decisions[-1].reason if rollout.decisions else ""
    if as_before(rollout):
        return f"compared, and as it was before; {said}" if said else "compared, and as it was before"
    return f"{rollout.spec.version} has all requests"


def watched(rollout: rollout_pb2.Rollout) -> str:
    """Why a rollout is watched."""
    return f"{rollout.spec.version} has all requests and is watched"


def as_before(rollout: rollout_pb2.Rollout) -> bool:
    """Whether it ends as it was before: a comparison."""
    return rollout.steps[-1].targets == rollout.before.targets


def enter(rollout: rollout_pb2.Rollout, phase: rollout_pb2.Phase.ValueType, now_ns: int) -> None:
    """Puts a rollout into a phase, from now on."""
    rollout.phase = phase
    rollout.since.CopyFrom(timestamp(now_ns))


def timestamp(now_ns: int) -> timestamp_pb2.Timestamp:
    """Nanoseconds since the epoch as a timestamp."""
    made = timestamp_pb2.Timestamp()
    made.FromNanoseconds(now_ns)
    return made


def copy(rollout: rollout_pb2.Rollout) -> rollout_pb2.Rollout:
    """Another rollout of the same content."""
    made = rollout_pb2.Rollout()
    made.CopyFrom(rollout)
    return made


def some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown

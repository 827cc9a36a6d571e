"""The states of an experiment, and what leads from one to the next. Pure: each function makes a new message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from aimesh.experiment.v1 import experiment_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.order import Order
from meshkit.errors import InvalidInputError, PreconditionError

CREATED = experiment_pb2.EXPERIMENT_STATE_CREATED
EXECUTING = experiment_pb2.EXPERIMENT_STATE_EXECUTING
EVALUATED = experiment_pb2.EXPERIMENT_STATE_EVALUATED
HELD = experiment_pb2.EXPERIMENT_STATE_HELD
PROMOTING = experiment_pb2.EXPERIMENT_STATE_PROMOTING
PROMOTED = experiment_pb2.EXPERIMENT_STATE_PROMOTED
QUARANTINING = experiment_pb2.EXPERIMENT_STATE_QUARANTINING
QUARANTINED = experiment_pb2.EXPERIMENT_STATE_QUARANTINED
CANCELLED = experiment_pb2.EXPERIMENT_STATE_CANCELLED
OPEN = (CREATED, EXECUTING, EVALUATED, PROMOTING, QUARANTINING)
"""States that the leader leads out of. HELD waits for a person."""
LEADER = "leader"
"""Who did what happened by itself."""
MOST_EVENTS = 200
State: TypeAlias = experiment_pb2.ExperimentState.ValueType

_AFTER: dict[State, tuple[State, ...]] = {
    experiment_pb2.EXPERIMENT_STATE_UNSPECIFIED: (CREATED,),
    CREATED: (EXECUTING, CANCELLED),
    EXECUTING: (CREATED, EXECUTING, EVALUATED, CANCELLED),
    EVALUATED: (HELD, PROMOTING, QUARANTINING, CANCELLED),
    HELD: (PROMOTING, QUARANTINING, CANCELLED),
    PROMOTING: (PROMOTED, CANCELLED),
    PROMOTED: (QUARANTINING,),
    QUARANTINING: (QUARANTINED,),
    QUARANTINED: (PROMOTING,),
    CANCELLED: (),
}


def moved(experiment: experiment_pb2.Experiment, state: State, order: Order) -> experiment_pb2.Experiment:
    """The experiment in another state. Raises PreconditionError when none leads there from where it is."""
    if state not in _AFTER[experiment.state]:
        raise _not_possible(experiment, word(state).lower())
    made = experiment_pb2.Experiment()
    made.CopyFrom(experiment)
    made.state, made.reason = state, order.reason
    event = made.events.add(state=state, reason=order.reason, by=order.by)
    event.at.FromNanoseconds(order.now_ns)
    del made.events[1 : max(1, len(made.events) - MOST_EVENTS + 1)]
    return made


def waiting(experiment: experiment_pb2.Experiment, reason: str) -> experiment_pb2.Experiment:
    """The experiment where it is, with what it waits for."""
    made = experiment_pb2.Experiment()
    made.CopyFrom(experiment)
    made.reason = reason
    return made


def executing(experiment: experiment_pb2.Experiment, at_ns: int) -> experiment_pb2.Experiment:
    """Begins to be executed, for the first time or anew."""
    made = moved(experiment, EXECUTING, Order(LEADER, "both versions are being asked", at_ns))
    made.attempts += 1
    return made


def judged(
    experiment: experiment_pb2.Experiment,
    verdict: rollout_pb2.Verdict.ValueType,
    reason: str,
    comparisons: Sequence[rollout_pb2.Comparison],
    at_ns: int,
) -> experiment_pb2.Experiment:
    """Where a verdict leads: up, into quarantine, or to a person."""
    made = moved(experiment, _follows(experiment.spec, verdict), Order(LEADER, reason, at_ns))
    made.verdict = verdict
    del made.comparisons[:]
    made.comparisons.extend(comparisons)
    return made


def promoted_by(experiment: experiment_pb2.Experiment, order: Order) -> experiment_pb2.Experiment:
    """A person's decision for the candidate. Raises InvalidInputError without a reason, PreconditionError."""
    _check_reason(order)
    if experiment.state not in (HELD, QUARANTINED):
        raise _not_possible(experiment, "promoted")
    return moved(experiment, PROMOTING, order)


def rejected_by(experiment: experiment_pb2.Experiment, order: Order) -> experiment_pb2.Experiment:
    """A person's decision against the candidate. Raises InvalidInputError without a reason, PreconditionError."""
    _check_reason(order)
    if experiment.state not in (HELD, PROMOTED):
        raise _not_possible(experiment, "rejected")
    return moved(experiment, QUARANTINING, order)


def cancelled_by(experiment: experiment_pb2.Experiment, order: Order) -> experiment_pb2.Experiment:
    """A person ends it. Raises PreconditionError when it is over."""
    if CANCELLED not in _AFTER[experiment.state]:
        raise _not_possible(experiment, "cancelled")
    return moved(experiment, CANCELLED, Order(order.by, order.reason or "cancelled", order.now_ns))


def last_order(experiment: experiment_pb2.Experiment, state: State) -> Order:
    """Who brought it into a state the last time."""
    found = [event for event in experiment.events if event.state == state]
    return Order(found[-1].by, found[-1].reason, found[-1].at.ToNanoseconds()) if found else Order(LEADER, "", 0)


def word(state: State) -> str:
    """EXPERIMENT_STATE_HELD as "HELD"."""
    return experiment_pb2.ExperimentState.Name(state).removeprefix("EXPERIMENT_STATE_")


def _follows(spec: experiment_pb2.ExperimentSpec, verdict: rollout_pb2.Verdict.ValueType) -> State:
    if verdict == rollout_pb2.VERDICT_FAIL:
        return QUARANTINING
    if verdict == rollout_pb2.VERDICT_PASS:
        return HELD if spec.manual else PROMOTING
    if spec.gates.inconclusive == rollout_pb2.INCONCLUSIVE_PROMOTE and not spec.manual:
        return PROMOTING
    if spec.gates.inconclusive == rollout_pb2.INCONCLUSIVE_ROLL_BACK:
        return QUARANTINING
    return HELD


def _check_reason(order: Order) -> None:
    if not order.reason.strip():
        raise InvalidInputError("a decision against the gates needs a reason", hint="--reason TEXT says why")


def _not_possible(experiment: experiment_pb2.Experiment, what: str) -> PreconditionError:
    name = experiment.spec.name
    return PreconditionError(
        f"experiment {name!r} is {word(experiment.state).lower()} and cannot be {what}",
        hint=f"see: aimesh experiments show {name}",
        reason="EXPERIMENT_STATE",
    )

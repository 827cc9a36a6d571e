"""Where experiments may go, and where not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aimesh.experiment.v1 import experiment_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.experiments import lifecycle
from coordinator.order import Order
from meshkit.errors import InvalidInputError, PreconditionError
from tests.unit.experiments.support import spec

ORDER = Order("key:ada", "because", 7)
PASS, FAIL, INCONCLUSIVE = (
    rollout_pb2.VERDICT_PASS,
    rollout_pb2.VERDICT_FAIL,
    rollout_pb2.VERDICT_INCONCLUSIVE,
)


def at(state: lifecycle.State, **fields: Any) -> experiment_pb2.Experiment:
    return experiment_pb2.Experiment(spec=spec(**fields), state=state, reason="before")


@pytest.mark.parametrize(
    ("verdict", "manual", "inconclusive", "state"),
    [
        (PASS, False, 0, lifecycle.PROMOTING),
        (PASS, True, 0, lifecycle.HELD),
        (FAIL, False, 0, lifecycle.QUARANTINING),
        (FAIL, True, 0, lifecycle.QUARANTINING),
        (INCONCLUSIVE, False, 0, lifecycle.HELD),
        (INCONCLUSIVE, False, rollout_pb2.INCONCLUSIVE_PROMOTE, lifecycle.PROMOTING),
        (INCONCLUSIVE, True, rollout_pb2.INCONCLUSIVE_PROMOTE, lifecycle.HELD),
        (INCONCLUSIVE, False, rollout_pb2.INCONCLUSIVE_ROLL_BACK, lifecycle.QUARANTINING),
        (rollout_pb2.VERDICT_UNSPECIFIED, False, 0, lifecycle.HELD),
    ],
)
def test_a_verdict_leads_up_down_or_to_a_person(
    verdict: Any, manual: bool, inconclusive: Any, state: lifecycle.State
) -> None:
    gates = rollout_pb2.Gates(inconclusive=inconclusive)
    evidence = [rollout_pb2.Comparison(metric="accuracy", now=0.4)]
    found = lifecycle.judged(at(lifecycle.EVALUATED, manual=manual, gates=gates), verdict, "why", evidence, 9)
    assert (found.state, found.verdict, found.reason) == (state, verdict, "why")
    assert list(found.comparisons) == evidence
    assert [(event.state, event.by, event.at.ToNanoseconds()) for event in found.events] == [(state, "leader", 9)]


def test_a_person_overrides_with_a_reason_and_nothing_is_changed_in_place() -> None:
    quarantined = at(lifecycle.QUARANTINED)
    promoted = lifecycle.promoted_by(quarantined, ORDER)
    assert (promoted.state, promoted.reason, promoted.events[-1].by) == (lifecycle.PROMOTING, "because", "key:ada")
    assert quarantined == at(lifecycle.QUARANTINED)
    assert lifecycle.rejected_by(at(lifecycle.PROMOTED), ORDER).state == lifecycle.QUARANTINING
    for decide in (lifecycle.promoted_by, lifecycle.rejected_by):
        with pytest.raises(InvalidInputError, match="needs a reason"):
            decide(at(lifecycle.HELD), Order("key:ada", "  ", 7))


@pytest.mark.parametrize(
    ("decide", "states"),
    [
        (lifecycle.promoted_by, (lifecycle.PROMOTED, lifecycle.PROMOTING, lifecycle.CREATED, lifecycle.CANCELLED)),
        (lifecycle.rejected_by, (lifecycle.QUARANTINED, lifecycle.EXECUTING, lifecycle.CANCELLED)),
        (lifecycle.cancelled_by, (lifecycle.CANCELLED, lifecycle.PROMOTED, lifecycle.QUARANTINED)),
    ],
)
def test_what_makes_no_sense_is_refused(decide: Any, states: tuple[lifecycle.State, ...]) -> None:
    for state in states:
        with pytest.raises(PreconditionError, match=f"'e1' is {lifecycle.word(state).lower()} and cannot be"):
            decide(at(state), ORDER)


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order: an end is reached from everywhere, and history is never rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.experiment = lifecycle.moved(experiment_pb2.Experiment(spec=spec()), lifecycle.CREATED, ORDER)
        self.history: list[experiment_pb2.Event] = []

    @rule(state=st.sampled_from(list(lifecycle._AFTER)))
    def try_to_move(self, state: lifecycle.State) -> None:
        before = experiment_pb2.Experiment()
        before.CopyFrom(self.experiment)
        try:
            self.experiment = lifecycle.moved(self.experiment, state, ORDER)
        except PreconditionError:
            assert self.experiment == before

    @precondition(lambda self: self.experiment.state == lifecycle.EVALUATED)
    @rule(verdict=st.sampled_from([PASS, FAIL, INCONCLUSIVE]))
    def judge(self, verdict: Any) -> None:
        self.experiment = lifecycle.judged(self.experiment, verdict, "why", [], 9)

    @invariant()
    def the_last_event_says_where_it_is(self) -> None:
        assert self.experiment.events[-1].state == self.experiment.state
        assert list(self.experiment.events[: len(self.history)]) == self.history
        self.history = list(self.experiment.events[:50])


TestLife = Life.TestCase


def test_only_so_many_events_are_kept_and_the_first_among_them() -> None:
    experiment = lifecycle.moved(experiment_pb2.Experiment(spec=spec()), lifecycle.CREATED, ORDER)
    for number in range(lifecycle.MOST_EVENTS + 50):
        experiment = lifecycle.executing(experiment, number)
    assert len(experiment.events) == lifecycle.MOST_EVENTS
    assert experiment.events[0].state == lifecycle.CREATED
    assert experiment.events[-1].at.ToNanoseconds() == lifecycle.MOST_EVENTS + 49
    assert experiment.attempts == lifecycle.MOST_EVENTS + 50

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from tools.tuning.course import PARTS, outcome, part_of, parts

SUCCEEDED, FAILED = training_pb2.JOB_STATE_SUCCEEDED, training_pb2.JOB_STATE_FAILED


def points(*losses: float, every: int = 1) -> list[training_pb2.MetricPoint]:
    return [training_pb2.MetricPoint(step=(index + 1) * every, loss=loss) for index, loss in enumerate(losses)]


def test_trials_of_other_lengths_have_the_same_parts() -> None:
    short = parts(points(*[float(step) for step in range(1, 41)]), 40, "loss")
    long = parts(points(*[float(step) for step in range(1, 401)]), 400, "loss")
    assert list(short) == list(long) == list(range(1, PARTS + 1))
    assert short[1] == 1.5
    assert long[1] == 10.5


def test_a_part_counts_when_it_is_over() -> None:
    assert parts(points(4, 3), 40, "loss") == {}
    assert parts(points(4, 3, 2), 40, "loss") == {1: 3.5}
    assert parts([], 40, "loss") == {}
    assert parts(points(1), 0, "loss") == {}


def test_a_job_of_a_few_steps_has_parts_without_values() -> None:
    assert parts(points(4, 3, 2, 1), 4, "loss") == {5: 4, 10: 3, 15: 2, 20: 1}


def test_other_values_and_losses_that_are_not_finite() -> None:
    measured = points(1, 1, 1)
    measured[0].values["accuracy"] = 0.5
    assert parts(measured, 3, "accuracy") == {7: 0.5}
    assert math.isnan(parts(points(math.nan, math.inf), 2, "loss")[10])
    assert math.isnan(parts(points(math.inf, -math.inf), 40, "loss").get(1, math.nan))


@given(st.integers(1, 10**9), st.data())
def test_every_step_has_a_part_and_later_ones_no_earlier_one(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, steps))
    assert 1 <= part_of(step, steps) <= PARTS
    assert part_of(step, steps) <= part_of(min(step + 1, steps), steps)
    assert part_of(steps, steps) == PARTS


@given(st.integers(1, 500), st.data())
def test_what_is_over_does_not_change_as_the_job_goes_on(steps: int, data: st.DataObject) -> None:
    whole = points(*[float(step) for step in range(steps)])
    seen = data.draw(st.integers(0, steps))
    before, after = parts(whole[:seen], steps, "loss"), parts(whole, steps, "loss")
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("state", "results", "pruned", "expected"),
    [
        (SUCCEEDED, {"accuracy": 0.9}, False, ("complete", 0.9, "")),
        (SUCCEEDED, {"accuracy": 0.9}, True, ("complete", 0.9, "")),
        (SUCCEEDED, {"loss": 0.9}, False, ("fail", None, "the job measured no 'accuracy'; it measured loss")),
        (SUCCEEDED, {"accuracy": math.nan}, False, ("fail", None, "accuracy is nan")),
        (FAILED, {}, True, ("pruned", None, "")),
        (FAILED, {}, False, ("fail", None, "boom")),
    ],
)
def test_an_ended_job_says_what_became_of_its_trial(
    state: training_pb2.JobState.ValueType, results: dict[str, float], pruned: bool, expected: tuple[object, ...]
) -> None:
    job = training_pb2.Job(state=state, results=results, error="boom" if state == FAILED else "")
    found = outcome(job, "accuracy", pruned=pruned)
    assert (found.state, found.value, found.error) == expected

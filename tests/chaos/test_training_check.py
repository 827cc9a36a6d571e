"""The check of jobs: what breaks a promise is found, and what does not is left alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.history import Event, Stall
from tests.chaos.training.check import UNNOTICED, Bars, figures, twice, violations
from tests.chaos.training.history import Course, Record, Step

FAULT, STEP_S = 10.0, 0.5
CURVE = {step: 1 / step for step in range(1, 41)}
TRAINING = Record(0.0, "RUNNING", "training", 1, 0, 0, 0, 0, 0, ["node-1", "node-2", "node-3"])


def steps(attempt: int, first: int, last: int, at: float) -> list[Step]:
    return [Step(at + STEP_S * n, attempt, step, CURVE[step]) for n, step in enumerate(range(first, last + 1))]


def good() -> Course:
    """A worker dies after step 20, of which 10 are in a checkpoint; 4 s later the job goes on."""
    course = Course("made", "made-1", healed=FAULT)
    again = replace(TRAINING, at=FAULT + 1, attempt=2, from_step=10, checkpoint=10, failures=1, lost_steps=10)
    course.records = [TRAINING, replace(TRAINING, at=6.0, checkpoint=10), again, replace(again, state="SUCCEEDED")]
    course.steps = [*steps(1, 1, 20, 0.25), *steps(2, 11, 40, FAULT + 4)]
    course.events = [Event(FAULT, "SIGKILL", "worker:node-2")]
    return course


def ended(course: Course, **changes: object) -> Course:
    course.records[-1] = replace(course.records[-1], **changes)  # type: ignore[arg-type]
    return course


def test_a_job_as_promised_breaks_nothing_and_is_measured(tmp_path: Path) -> None:
    course = good()
    assert violations(course, Bars(), CURVE) == []
    measured = figures(course)
    assert (measured["pause_s"], measured["again_s"], measured["made_twice"]) == (4.25, 4.0, 10)
    course.write(tmp_path / "course.jsonl")
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "course.jsonl").read_text().splitlines()]
    assert [kinds.count(kind) for kind in ("Head", "Record", "Step", "Event")] == [1, 4, 50, 1]


@pytest.mark.parametrize(
    ("bars", "wrong"),
    [
        (Bars("FAILED"), "it ended SUCCEEDED"),
        (Bars(error="SIGKILL"), "its error does not say"),
        (Bars(pause_s=3.9), "no step for 4.25 s"),
        (Bars(again_s=3.9), "the next step came 4.00 s after"),
        (Bars(attempts=1), "2 attempts, not 1"),
        (Bars(failures=0), "1 failures, not 0"),
        (Bars(preemptions=1), "0 preemptions, not 1"),
        (Bars(workers=2), "its last attempt had 3 workers"),
        (Bars(twice=9), "more than 9 steps were made again"),
    ],
)
def test_each_bar_is_held(bars: Bars, wrong: str) -> None:
    (found,) = violations(good(), bars, CURVE)
    assert found.startswith(wrong)


def test_another_loss_is_found_also_of_a_step_that_was_made_again() -> None:
    course = good()
    course.steps[15] = replace(course.steps[15], loss=CURVE[16] * 1.0001)
    (found,) = violations(course, Bars(), CURVE)
    assert found.startswith("1 losses are others than undisturbed, the first of step 16 in attempt 1")
    assert violations(course, Bars(same_curve=False), CURVE) == []


def test_steps_that_were_never_made_are_missed() -> None:
    course = good()
    del course.steps[-1], course.steps[30]
    found = violations(course, Bars(), CURVE)
    assert [line.partition(",")[0] for line in found] == [
        "2 steps were never made",
        "attempt 2 made step 22 after step 20",
    ]


@pytest.mark.parametrize(("said", "unheard", "wrong"), [(9, 0, 1), (11, 0, 1), (7, 3, 0), (6, 3, 1), (11, 3, 1)])
def test_a_job_says_how_many_steps_were_made_twice(said: int, unheard: int, wrong: int) -> None:
    found = violations(ended(good(), lost_steps=said), Bars(unheard_steps=unheard), CURVE)
    assert [line.partition(" (")[0] for line in found] == ["10 steps were made twice"] * wrong


def test_an_attempt_begins_at_the_last_checkpoint() -> None:
    course = good()
    course.records[1] = replace(course.records[1], checkpoint=15)
    assert violations(course, Bars(), CURVE) == ["attempt 2 begins after step 10, not 15"]


def test_what_others_took_of_the_machine_is_added() -> None:
    course = good()
    course.stalls = [Stall(FAULT + 2, 0.5)]
    assert violations(course, Bars(pause_s=3.75, again_s=3.5), CURVE) == []


def test_nothing_at_all_is_not_good() -> None:
    assert len(violations(Course(), UNNOTICED, CURVE)) == 3


def test_processes_that_stay_are_named() -> None:
    course = good()
    course.left = ["process 7"]
    assert violations(course, Bars(), CURVE) == ["process 7 was left behind"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6))
def test_whatever_the_attempts_were_the_steps_made_twice_add_up(lengths: Sequence[tuple[int, int]]) -> None:
    """Each attempt makes some steps, and the next one begins some before its end, at the earliest at its begin."""
    course, start, at, lost = Course(), 0, 0.0, 0
    for attempt, (made, back) in enumerate(lengths, 1):
        course.records.append(replace(TRAINING, at=at, attempt=attempt, from_step=start))
        course.steps += [Step(at + n, attempt, start + n + 1, 1.0) for n in range(made)]
        again = min(back, made) if attempt < len(lengths) else 0
        start, at, lost = start + made - again, at + made + 1, lost + again
    assert sum(twice(course).values()) == lost
    assert len({(step.attempt, step.step) for step in course.steps}) == len(course.steps)

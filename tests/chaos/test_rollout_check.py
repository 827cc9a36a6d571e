"""The check of rollouts: what breaks a promise is found, and what does not is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.history import Stall
from tests.chaos.rollouts.check import THROUGH_GATEWAY, Bars, figures, violations
from tests.chaos.rollouts.history import Answer, History, Move, Wish, from_line

OLD, NEW = "1.0.0", "1.1.0"
TAKES_OVER = Bars("SUCCEEDED", takes_over=True)
SPLIT = Wish(10.0, 2, {OLD: 50, NEW: 50}, {OLD: 2, NEW: 1}, sticky="x-user")


def good() -> History:
    """Half of the requests from second 10 on, all from second 20 on."""
    history = History("made", 0.0, 30.0, OLD, NEW)
    history.wishes += [Wish(0.0, 1, {OLD: 100}, {OLD: 2}), replace(SPLIT, sticky="")]
    history.wishes += [
        Wish(20.0, 3, {OLD: 0, NEW: 100}, {OLD: 2, NEW: 2}),
        Wish(21.0, 4, {NEW: 100}, {NEW: 2}),
    ]
    history.moves += [Move(5.0, 1, "r", "RUNNING", "LOADING", 0, ""), Move(21.0, 4, "r", "SUCCEEDED", "", 1, "done")]
    history.answers += [answer(second, OLD) for second in range(20)]
    history.answers += [answer(second, NEW) for second in range(10, 30)]
    return history


def answer(start: float, version: str, user: str = "u", took: float = 0.01) -> Answer:
    return Answer(THROUGH_GATEWAY, start, start + took, "OK", user, version, right=True)


def test_a_rollout_as_promised_breaks_nothing(tmp_path: Path) -> None:
    history = good()
    assert violations(history, TAKES_OVER) == []
    assert (figures(history)["by_new"], figures(history)["rollout_s"]) == (20, 16)
    history.write(tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()[1:]
    assert {fact for fact in map(from_line, lines) if isinstance(fact, Answer)} == set(history.answers)


@pytest.mark.parametrize(
    ("start", "version", "took", "wrong"),
    [
        (9.0, NEW, 0.01, True),  # before it had a weight
        (9.0, NEW, 0.9, False),  # answered when it had one: it was tried again
        (20.9, OLD, 0.01, False),  # within the second that clients have
        (21.5, OLD, 0.01, True),
        (28.0, "0.9.0", 0.01, True),  # never wanted
    ],
)
def test_a_version_answers_only_with_a_weight(start: float, version: str, took: float, wrong: bool) -> None:
    history = good()
    history.answers.append(answer(start, version, took=took))
    found = violations(history, TAKES_OVER)
    assert [line.partition(" of ")[2].partition(",")[0] for line in found] == ["versions without a weight"] * wrong


def test_time_that_others_took_of_the_machine_is_added() -> None:
    history = good()
    history.answers.append(answer(21.5, OLD))
    history.stalls.append(Stall(20.8, 0.6))
    assert violations(history, TAKES_OVER) == []


def test_lost_and_wrong_answers_are_found() -> None:
    history = good()
    history.answers.append(Answer("xds", 12.0, 12.5, "UNAVAILABLE", "u", message="gone"))
    history.answers.append(replace(answer(12.0, NEW), right=False))
    found = violations(history, TAKES_OVER)
    assert [line.split(",")[0] for line in found] == ["1 answers are wrong", "1 of 42 requests lost"]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([(12, OLD, "a"), (13, OLD, "a"), (12, NEW, "b")], []),
        ([(12, OLD, "a"), (13, NEW, "a"), (12, NEW, "b")], ["1 of 2 callers changed between versions"]),
        ([(10.5, OLD, "a"), (13, NEW, "a"), (12, OLD, "b")], []),  # clients had not heard of it yet
        ([(12, OLD, "a"), (12, OLD, "b")], ["2 callers and no two versions"]),
    ],
)
def test_callers_stay_with_their_version(answers: Sequence[tuple[float, str, str]], found: Sequence[str]) -> None:
    history = good()
    history.wishes[1] = SPLIT
    history.answers = [answer(*each) for each in answers]
    lines = violations(history, replace(TAKES_OVER, sticky=True, answers=False))
    assert [line.partition(":")[0] for line in lines] == found


def test_the_end_is_what_was_asked_for_or_what_was_before() -> None:
    history = good()
    assert violations(history, Bars("ROLLED_BACK", takes_over=False))[0] == "it ended SUCCEEDED, not ROLLED_BACK: done"
    assert "the weights are" in violations(history, Bars("SUCCEEDED", takes_over=False))[0]
    assert violations(history, replace(TAKES_OVER, reason="latency")) == ["its reason does not name latency: done"]
    history.wishes[-1] = replace(history.wishes[-1], replicas={NEW: 3}, mirror=OLD)
    lines = [line.partition(":")[0] for line in violations(history, TAKES_OVER)]
    assert lines == ["in the end there are 3 replicas, not 2", "the policy is another than before"]


def test_nothing_tested_is_no_success() -> None:
    history = good()
    history.answers = [each for each in history.answers if each.version == OLD]
    assert violations(history, TAKES_OVER) == [f"{NEW} answered nobody: nothing was tested"]
    assert violations(History(), TAKES_OVER)[-1] == "there was no rollout"

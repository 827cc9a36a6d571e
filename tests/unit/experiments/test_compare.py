"""Two versions' answers as a report."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aimesh.experiment.v1 import experiment_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.evaluation.scores import score
from coordinator.experiments import gating
from coordinator.experiments.asking import Taken
from coordinator.experiments.compare import Scores, compare, mean_scores, window
from coordinator.experiments.summary import differs, number
from tests.unit.experiments.support import taken

EXPECTED = [place % 3 for place in range(120)]
WRONG = [(label + 1) % 3 if place % 4 == 0 else label for place, label in enumerate(EXPECTED)]
METRICS = ["accuracy", "f1", "precision", "recall"]


def scores(of: Taken) -> Scores:
    rounds = [[each.answer for each in one] for one in of.rounds]
    return {metric: mean_scores([score(metric, EXPECTED, each) for each in rounds]) for metric in METRICS}


def report(old: Taken, new: Taken) -> experiment_pb2.Report:
    return compare(EXPECTED, old, new, scores(old), scores(new))


def row(found: experiment_pb2.Report, metric: str) -> experiment_pb2.Row:
    (one,) = [each for each in found.rows if each.metric == metric]
    return one


def test_the_same_version_twice_shows_no_difference() -> None:
    found = report(taken("1.0.0", EXPECTED), taken("2.0.0", EXPECTED))
    assert found.summary.startswith("No difference that matters between m:2.0.0 and m:1.0.0 is shown")
    assert row(found, "accuracy").candidate.value == 1.0
    assert row(found, "overlap").candidate.value == 1.0
    assert not row(found, "overlap").HasField("baseline")
    assert (row(found, "consistency").baseline.value, row(found, "error_rate").candidate.value) == (1.0, 0.0)
    assert any("no cost" in note for note in found.notes)


def test_a_worse_version_is_said_to_be_worse_with_intervals_that_hold_the_value() -> None:
    found = report(taken("1.0.0", EXPECTED), taken("2.0.0", WRONG, milliseconds=30))
    accuracy = row(found, "accuracy")
    assert accuracy.candidate.value == pytest.approx(0.75)
    assert accuracy.candidate.low < 0.75 < accuracy.candidate.high
    assert accuracy.effect == pytest.approx(-0.25)
    assert accuracy.p_value <= accuracy.adjusted_p_value < 0.001
    latency = row(found, "latency_p50_ms")
    assert latency.effect > 0.9, "Cliff's delta: nearly every question took longer"
    assert row(found, "latency_p99_ms").candidate.value > row(found, "latency_p50_ms").candidate.value
    assert row(found, "overlap").candidate.value == pytest.approx(0.75)
    assert found.summary.startswith("m:2.0.0 is worse than m:1.0.0 in accuracy (0.750, was 1.000)")
    assert sum(found.candidate.latency_buckets.values()) == found.candidate.requests == 360


def test_versions_overlap_where_their_labels_do_whatever_their_numbers() -> None:
    logits = [[float(label == each) for each in range(3)] for label in EXPECTED]
    surer = [[5 * value + 1 for value in each] for each in logits]
    assert row(report(taken("1.0.0", logits), taken("2.0.0", surer)), "overlap").candidate.value == 1.0


def test_a_pause_of_the_machine_is_no_longer_tail() -> None:
    calm = taken("2.0.0", EXPECTED)
    first, *others = calm.rounds
    paused = replace(calm, rounds=[[replace(each, seconds=1.0) for each in first], *others])
    assert max(window(paused, scores(paused)).latency) < 8 * math.log2(1e6), (
        "nobody took the second that a third of them took"
    )


def test_errors_costs_and_tokens_are_told_by_kind() -> None:
    old = taken("1.0.0", EXPECTED, price=2.0, parts=8, memory=1e9)
    new = taken("2.0.0", EXPECTED, price=4.0, parts=16, memory=2e9, failing=30)
    found = report(old, new)
    assert dict(found.candidate.errors) == {"INTERNAL": 90}
    assert row(found, "error_rate").candidate.value == pytest.approx(0.25)
    assert differs(row(found, "error_rate"))
    assert row(found, "cost_per_request").candidate.value > row(found, "cost_per_request").baseline.value
    assert (row(found, "tokens_per_answer").baseline.value, row(found, "tokens_per_answer").effect) == (8.0, 1.0)
    assert not differs(row(found, "tokens_per_answer")), "more tokens are neither good nor bad"
    assert row(found, "memory_bytes").candidate.value == 2e9


def test_a_version_that_fails_everything_can_be_compared() -> None:
    found = report(taken("1.0.0", EXPECTED), taken("2.0.0", EXPECTED, failing=120))
    assert row(found, "error_rate").candidate.value == 1.0
    assert not row(found, "latency_p50_ms").HasField("candidate")
    assert "worse" in found.summary


def test_answers_that_change_from_run_to_run_are_inconsistent() -> None:
    new = taken("2.0.0", EXPECTED)
    new.rounds[1] = [type(each)(9, each.seconds) for each in new.rounds[1]]
    found = report(taken("1.0.0", EXPECTED), new)
    assert row(found, "consistency").candidate.value == 0.0


def judge(old: Taken, new: Taken, **gates: object) -> tuple[str, str]:
    encoded = gating.encode(window(old, scores(old)), window(new, scores(new)))
    assert gating.decode(encoded) == (window(old, scores(old)), window(new, scores(new)))
    evaluation = rollout_pb2.Evaluation(metrics=METRICS)
    found = gating.verdict(rollout_pb2.Gates(evaluation=evaluation, **gates), encoded)  # type: ignore[arg-type]
    return rollout_pb2.Verdict.Name(found.verdict).removeprefix("VERDICT_"), found.reason


def test_the_gates_pass_what_is_as_good_and_fail_what_is_not() -> None:
    good = taken("1.0.0", EXPECTED, repeat=4, price=2.0)
    assert judge(good, taken("2.0.0", EXPECTED, repeat=4, price=2.0))[0] == "PASS"
    verdict, reason = judge(good, taken("2.0.0", WRONG, repeat=4))
    assert (verdict, "accuracy" in reason) == ("FAIL", True)
    verdict, reason = judge(good, taken("2.0.0", EXPECTED, repeat=4, price=3.0))
    assert (verdict, "cost_per_request" in reason) == ("FAIL", True)
    assert judge(good, taken("2.0.0", EXPECTED, repeat=4, milliseconds=40))[0] == "FAIL"
    rego = "package aimesh.gates\nimport rego.v1\nfail contains x if { x := 1 / 0 }"
    assert judge(good, good, rego=rego)[0] == "UNSPECIFIED"


def test_numbers_for_people() -> None:
    assert [number(2**21, "bytes"), number(0.25, "share"), number(3.14159, "ms"), number(1234.5, "1/s")] == [
        "2 MiB",
        "0.250",
        "3.14 ms",
        "1234 1/s",
    ]

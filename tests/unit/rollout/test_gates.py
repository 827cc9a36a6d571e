"""Gates: what may be asked for, what a policy sees, and how statistics and rules come together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.rollout.v1 import rollout_pb2
from aimesh.rollout.v1.rollout_pb2 import Evaluation
from coordinator.rollout import rego
from coordinator.rollout.compare import compare
from coordinator.rollout.gates import check_gates, document, error_rate_surely, judge, known_metrics
from coordinator.rollout.rego import Policy, PolicyError, default_policy, evaluate
from coordinator.rollout.window import Window
from meshkit.errors import InvalidInputError

KNOWN = known_metrics(rollout_pb2.Gates())
PACKAGE = "package aimesh.gates\nimport rego.v1\n"
FAST = {80: 500, 81: 400, 82: 100}
"""Latencies of a thousand requests, about 1 to 1.3 ms."""


def window(requests: int = 1000, failures: int = 0, latency: Mapping[int, int] | None = None, **more: object) -> Window:
    fields: dict[str, object] = {"seconds": 30.0, "requests": requests, "failures": failures, **more}
    return Window(latency=FAST if latency is None else latency, **fields)  # type: ignore[arg-type]


def test_the_built_in_policy_compiles_and_names_only_what_there_is() -> None:
    assert rego.compile(default_policy().text, KNOWN) == default_policy()


@pytest.mark.parametrize(
    ("input_", "fails"),
    [
        ({"metrics": {}, "surely": {"error_rate": 0}}, 0),
        ({"metrics": {"accuracy": 0.86}, "surely": {"error_rate": 0.049}, "cost_increase": 0.19}, 0),
        ({"metrics": {"accuracy": 0.85}, "surely": {"error_rate": 0}}, 1),
        ({"metrics": {"error_rate": 0.9}, "surely": {"error_rate": 0.05}}, 1),
        ({"metrics": {}, "surely": {"error_rate": 0}, "cost_increase": 0.2}, 1),
        ({"metrics": {"accuracy": 0.1}, "surely": {"error_rate": 0.3}, "cost_increase": 2}, 3),
    ],
)
def test_the_built_in_policy(input_: dict[str, object], fails: int) -> None:
    assert len(evaluate(default_policy(), input_).fail) == fails


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PACKAGE + "fail contains if if {", "line 3: this is unclosed"),
        (PACKAGE + 'fail contains "x" if { input.metrics.acuracy < 1 }', "line 3: input.metrics.acuracy is no metric"),
        (PACKAGE + 'fail contains "x" if { input.baseline["nope"] < 1 }', "input.baseline.nope is no metric"),
        (PACKAGE + 'fail contains "x" if { input.metrik.accuracy < 1 }', "line 3: input.metrik does not exist"),
        (PACKAGE + "# input.metrik\nfail contains m if { m := nosuch(1) }", "line 4: there is no function nosuch"),
        (PACKAGE + 'a if { b }\nb if { a }\nfail contains "x" if { a }', "rules that need each other"),
        ('package other\nfail contains "x"', "no set `fail`"),
        (PACKAGE + 'hold contains "x"', "no set `fail`"),
        (PACKAGE + "fail contains 5", "`fail` must be a set of texts"),
        (PACKAGE + 'fail contains "x" if { count(numbers.range(1, 300000000)) > 5 }', "took longer"),
        ("", "line 1"),
        ("# " + "x" * 70000, "has 70002 bytes"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=r"the gates' policy cannot be used") as caught:
        rego.compile(text, KNOWN)
    assert said in caught.value.message


def test_a_policy_that_fails_when_it_is_run_raises_and_the_next_one_runs() -> None:
    divides = rego.compile(PACKAGE + 'fail contains "x" if { input.requests > 0; 1 / (input.requests - 1) > 0 }', KNOWN)
    with pytest.raises(PolicyError, match="division by zero"):
        evaluate(divides, {"requests": 1})
    endless = Policy(PACKAGE + 'fail contains "x" if { some i in numbers.range(1, 300000000); i < 0 }')
    with pytest.raises(PolicyError, match="took longer"):
        evaluate(endless, {})
    assert evaluate(Policy(PACKAGE + 'fail[m] { m := "old" }'), {}).fail == ["old"]


def test_a_large_document_has_room_and_a_policy_that_takes_much_memory_has_not() -> None:
    text = PACKAGE + 'fail contains "many" if { count(input.comparisons) > 4999 }'
    many = [{"metric": f"metric {number}", "p_value": number / 5000} for number in range(5000)]
    assert evaluate(Policy(text), {"comparisons": many}).fail == ["many"]
    wide = Policy(PACKAGE + 'fail contains concat("", [s | numbers.range(1, 100000000)[_]; s := input.text])')
    with pytest.raises(PolicyError, match="more memory"):
        evaluate(wide, {"text": "x" * 10000})
    assert evaluate(Policy(text), {"comparisons": many}).fail == ["many"]


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        (rollout_pb2.Gates(needs=["speed"]), "metric 'speed' is unknown"),
        (rollout_pb2.Gates(false_alarm=0.6), "false_alarm 0.6"),
        (rollout_pb2.Gates(false_alarm=-0.1), "false_alarm -0.1"),
        (rollout_pb2.Gates(none=True, needs=["error_rate"]), "excludes"),
        (rollout_pb2.Gates(rego="package x"), "policy cannot be used"),
        (rollout_pb2.Gates(evaluation=Evaluation(dataset="d")), "no sha256 digest"),
        (rollout_pb2.Gates(evaluation=Evaluation(dataset="0" * 64, output="y")), "names no metric"),
        (rollout_pb2.Gates(evaluation=Evaluation(dataset="0" * 64, metrics=["f1"])), "which output"),
        (rollout_pb2.Gates(evaluation=Evaluation(dataset="0" * 64, output="y", metrics=["f2"])), "'f2' is unknown"),
        (rollout_pb2.Gates(evaluation=Evaluation(dataset="0" * 64, output="y", metrics=["scorer:../x"])), "unknown"),
    ],
)
def test_gates_that_name_what_there_is_not_are_refused(gates: rollout_pb2.Gates, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_gates(gates)
    assert said in caught.value.message


def test_gates_that_are_right_pass() -> None:
    check_gates(rollout_pb2.Gates())
    check_gates(rollout_pb2.Gates(none=True))
    evaluation = Evaluation(dataset="0" * 64, output="y", metrics=["f1", "scorer:mine"])
    text = PACKAGE + 'fail contains "bad" if { input.metrics["scorer:mine"] < 0.5 }'
    check_gates(rollout_pb2.Gates(needs=["scorer:mine"], rego=text, evaluation=evaluation))


def test_no_gates_pass_by_time() -> None:
    assert judge(rollout_pb2.Gates(none=True), window(), window(failures=900)).verdict == rollout_pb2.VERDICT_PASS


def test_worse_by_the_statistics_fails_before_the_policy_is_asked() -> None:
    gates = rollout_pb2.Gates(rego="not a policy at all")
    found = judge(gates, window(), window(failures=500))
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert "error_rate" in found.reason


def test_equal_versions_pass_and_the_policys_word_counts() -> None:
    before, now = window(5000, latency={80: 5000}), window(5000, latency={80: 5000})
    assert judge(rollout_pb2.Gates(), before, now).verdict == rollout_pb2.VERDICT_PASS
    fails = rollout_pb2.Gates(rego=PACKAGE + 'fail contains "too many" if { input.requests > 10 }')
    found = judge(fails, before, now)
    assert (found.verdict, found.reason) == (rollout_pb2.VERDICT_FAIL, "too many")
    assert {each.metric for each in found.comparisons} >= {"error_rate", "latency_p99_ms"}
    holds = rollout_pb2.Gates(rego=PACKAGE + 'fail contains "x" if { false }\nhold contains "wait"')
    found = judge(holds, before, now)
    assert (found.verdict, found.reason) == (rollout_pb2.VERDICT_INCONCLUSIVE, "wait")


def test_a_missing_metric_that_is_needed_is_inconclusive_and_named() -> None:
    before, now = window(5000, latency={80: 5000}), window(5000, latency={80: 5000})
    found = judge(rollout_pb2.Gates(needs=["accuracy"]), before, now)
    assert found.verdict == rollout_pb2.VERDICT_INCONCLUSIVE
    assert "accuracy" in found.reason


def test_a_step_does_not_pass_before_its_evaluation_is_there() -> None:
    gates = rollout_pb2.Gates(evaluation=Evaluation(dataset="0" * 64, output="y", metrics=["accuracy"]))
    scores = {"accuracy": [1.0] * 200}
    before = window(5000, latency={80: 5000}, quality=scores)
    found = judge(gates, before, window(5000, latency={80: 5000}))
    assert (found.verdict, found.reason) == (rollout_pb2.VERDICT_INCONCLUSIVE, "not evaluated yet: accuracy")
    assert judge(gates, before, window(5000, latency={80: 5000}, quality=scores)).verdict == rollout_pb2.VERDICT_PASS


def test_both_versions_failing_too_much_is_the_policys_business() -> None:
    before, now = window(5000, 1000, {80: 4000}), window(5000, 1000, {80: 4000})
    found = judge(rollout_pb2.Gates(), before, now)
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert "must be below 0.05" in found.reason


def test_a_policy_sees_what_was_measured_and_nothing_else() -> None:
    before = window(quality={"accuracy": [1.0, 0.0]}, cost=1.0, replica_s=1.0, busy_ns=10**9)
    now = window(quality={"accuracy": [1.0, 1.0]}, cost=1.5, replica_s=1.0, busy_ns=10**9)
    seen = document(compare(before, now), now, 0.05)
    assert seen["metrics"]["accuracy"] == 1.0
    assert seen["baseline"]["accuracy"] == 0.5
    assert seen["cost_increase"] == pytest.approx(0.5)
    assert seen["requests"] == 1000
    assert "memory_bytes" not in seen["metrics"]
    unpriced = window()
    assert "cost_increase" not in document(compare(before, unpriced), unpriced, 0.05)


def test_an_early_failure_is_not_an_error_rate() -> None:
    assert error_rate_surely(window(10, 1), 0.05) < 0.05
    assert error_rate_surely(window(200, 60), 0.05) > 0.15
    assert error_rate_surely(window(0, 0), 0.05) == 0.0
    assert error_rate_surely(window(100, 0, gateway_requests=100, gateway_failures=90), 0.05) > 0.5


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_what_is_sure_is_less_than_what_was_seen(failures: int, answers: int) -> None:
    total = failures + answers
    assert 0 <= error_rate_surely(window(total, failures), 0.05) <= (failures / total if total else 0)

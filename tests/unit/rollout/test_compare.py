"""What is compared of two windows, and what that comes to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.compare import compare
from coordinator.rollout.verdict import Judgement, verdict
from coordinator.rollout.window import Window

GATES = rollout_pb2.Gates()
MIB = 2**20


def window(requests: int, failures: int = 0, *, slower: float = 1.0, seed: int = 1, **more: object) -> Window:
    """Lognormal latencies around 20 ms, times `slower`."""
    times = 20_000 * slower * np.exp(0.5 * np.random.default_rng(seed).standard_normal(requests))
    buckets, counts = np.unique((np.log2(times) * 8).astype(int), return_counts=True)
    latency = dict(zip(buckets.tolist(), counts.tolist(), strict=True))
    made = Window(seconds=30, requests=requests, failures=failures, latency=latency)
    return replace(made, **more)  # type: ignore[arg-type]


OLD = window(3000, 3, seed=2)
FROZEN = window(6000, 6, seed=3)


def by_metric(before: Window, now: Window, frozen: Window | None = None) -> dict[str, rollout_pb2.Comparison]:
    return {each.metric: each for each in compare(before, now, frozen)}


def judged(before: Window, now: Window, frozen: Window | None = None, gates: rollout_pb2.Gates = GATES) -> Judgement:
    return verdict(gates, compare(before, now, frozen, 0.1))


def test_nothing_measured_is_left_out() -> None:
    assert compare(Window(), Window()) == []
    found = judged(Window(), Window())
    assert found.verdict == rollout_pb2.VERDICT_INCONCLUSIVE
    assert "0 of 50 requests seen" in found.reason
    assert "nothing to compare with" in found.reason


@pytest.mark.parametrize("frozen", [None, FROZEN])
def test_the_same_version_passes(frozen: Window | None) -> None:
    found = judged(OLD, window(300, 0), frozen)
    assert found.verdict == rollout_pb2.VERDICT_PASS
    assert found.reason.startswith("no worse: error_rate 0 % (was 0.1 %), latency_p50_ms")


def test_with_few_requests_there_is_no_telling() -> None:
    found = judged(OLD, window(20, 0), FROZEN)
    assert found.verdict == rollout_pb2.VERDICT_INCONCLUSIVE
    assert "20 of 50 requests seen" in found.reason
    few = judged(OLD, window(55, 0), FROZEN)
    assert few.verdict == rollout_pb2.VERDICT_INCONCLUSIVE
    assert "55 requests are too few to be sure that error_rate 0 % (was 0.1 %) is no worse" in few.reason


def test_errors_fail() -> None:
    found = judged(OLD, window(300, 15), FROZEN)
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert found.reason.startswith("error_rate is worse: 5 % (was 0.1 %), p = ")
    assert "effect +0.049" in found.reason


def test_a_small_difference_does_not_fail_however_sure_it_is() -> None:
    old, new = window(100_000, 100, seed=4), window(100_000, 500, seed=5)
    found = judged(old, new, FROZEN)
    assert by_metric(old, new)["error_rate"].p_value < 1e-9
    assert found.verdict == rollout_pb2.VERDICT_PASS


def test_what_gateways_count_counts_too() -> None:
    old = replace(OLD, gateway_requests=3000, gateway_failures=4)
    new = window(300, 0, gateway_requests=320, gateway_failures=32)
    found = by_metric(old, new)["error_rate"]
    assert (found.before_count, found.now_count, found.now) == (3000, 320, 0.1)
    assert judged(old, new, FROZEN).verdict == rollout_pb2.VERDICT_FAIL


@pytest.mark.parametrize("frozen", [None, FROZEN])
def test_slower_fails(frozen: Window | None) -> None:
    found = judged(OLD, window(200, slower=2.0), frozen)
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert "latency_p50_ms is worse" in found.reason


def test_a_longer_tail_fails() -> None:
    new = window(400)
    latency = {**new.latency, 140: 40}  # 185 ms: what was the p99 is 65 ms
    found = judged(OLD, replace(new, requests=440, latency=latency), FROZEN)
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert "latency_p99_ms" in found.reason
    assert "latency_p50_ms" not in found.reason


def test_faster_and_fewer_errors_is_no_evidence_of_worse() -> None:
    found = by_metric(window(3000, 60, seed=2), window(300, 0, slower=0.5), FROZEN)
    for metric in ("error_rate", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"):
        assert found[metric].effect < 0
        assert found[metric].p_value > 0.05


def test_an_old_version_without_requests_is_stood_in_for() -> None:
    found = by_metric(Window(seconds=30), window(300), FROZEN)
    assert found["error_rate"].before == FROZEN.failures / FROZEN.requests
    assert "earlier time" in found["error_rate"].test
    assert judged(Window(), window(300), FROZEN).verdict == rollout_pb2.VERDICT_PASS
    assert judged(Window(), window(300, slower=3), FROZEN).verdict == rollout_pb2.VERDICT_FAIL


def test_plain_metrics_are_shown_and_not_tested() -> None:
    old = replace(OLD, queue_ns=3_000_000_000, responses=6000, busy_ns=60_000_000_000, gpu_memory_bytes=1000.0)
    new = window(300, 0, queue_ns=600_000_000, responses=600, busy_ns=12_000_000_000, gpu_memory_bytes=1500.0)
    found = by_metric(old, new)
    shown = ("throughput_rps", "queue_ms", "gpu_memory_bytes", "tokens_per_s")
    assert all(found[metric].test == "" and found[metric].p_value == 1 for metric in shown)
    assert found["throughput_rps"].now == 10
    assert found["queue_ms"].now == 2
    assert found["gpu_memory_bytes"].effect == pytest.approx(0.5)
    assert found["tokens_per_s"].now == 50
    assert found["tokens_per_s"].effect == pytest.approx(0.5)


def test_cost_is_of_the_time_that_requests_take_whatever_the_weights() -> None:
    old = replace(OLD, busy_ns=70_000_000_000, queue_ns=10_000_000_000, cost=36.0, replica_s=120.0)
    new = window(500, 0, busy_ns=10_000_000_000, cost=18.0, replica_s=30.0)
    found = by_metric(old, new)["cost_per_request"]
    assert found.before == pytest.approx(36 / 120 * 60 / (3000 - 3))
    assert found.now == pytest.approx(18 / 30 * 10 / 500)  # twice the price, the same time
    assert found.effect == pytest.approx(1, abs=0.01)
    assert "cost_per_request" not in by_metric(old, replace(new, requests=300))  # too few to say


def test_a_leak_fails_and_what_has_warmed_up_does_not() -> None:
    noise = np.random.default_rng(6).normal(0, 0.2, 30)
    leak = [(float(second), (500 + 5 * second + noise[second]) * MIB) for second in range(30)]
    found = judged(OLD, window(300, memory_bytes=570.0 * MIB, memory_trend=leak), FROZEN)
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert "memory_bytes is worse: 570 MiB" in found.reason
    warm = [(float(s), (500 + 100 * (1 - 2.0 ** (-s / 3)) + noise[s]) * MIB) for s in range(30)]
    found = judged(OLD, window(300, memory_bytes=590.0 * MIB, memory_trend=warm), FROZEN)
    assert found.verdict == rollout_pb2.VERDICT_PASS


def scores(right: int, of: int = 200, first: int = 0) -> list[float]:
    """So many right answers, of which the wrong ones begin at a question."""
    return [0.0 if first <= question < first + of - right else 1.0 for question in range(of)]


def quality(old: list[float], new: list[float], metric: str = "accuracy") -> Judgement:
    return judged(replace(OLD, quality={metric: old}), window(300, 0, quality={metric: new}), FROZEN)


def test_broken_answers_fail() -> None:
    found = quality(scores(190), scores(140))
    assert found.verdict == rollout_pb2.VERDICT_FAIL
    assert "accuracy is worse: 0.7 (was 0.95)" in found.reason


def test_better_answers_pass() -> None:
    assert quality(scores(140), scores(190)).verdict == rollout_pb2.VERDICT_PASS


def test_a_tie_is_told_only_with_enough_questions() -> None:
    tie = quality(scores(45, 50), scores(45, 50, first=5))
    assert tie.verdict == rollout_pb2.VERDICT_INCONCLUSIVE
    assert "50 questions are too few to be sure that accuracy 0.9 (was 0.9) is no worse" in tie.reason
    assert quality(scores(1980, 2000), scores(1980, 2000, first=20)).verdict == rollout_pb2.VERDICT_PASS


def test_the_same_answers_pass_with_a_hundred_questions() -> None:
    assert quality(scores(92, 100), scores(92, 100)).verdict == rollout_pb2.VERDICT_PASS
    assert quality(scores(46, 50), scores(46, 50)).verdict == rollout_pb2.VERDICT_INCONCLUSIVE


def test_other_questions_are_compared_without_pairs() -> None:
    found = by_metric(replace(OLD, quality={"f1": scores(190)}), window(300, quality={"f1": scores(100, 180)}))["f1"]
    assert found.test.startswith("other questions, Welch")
    assert found.p_value < 1e-6
    few = by_metric(replace(OLD, quality={"f1": [1.0, 1.0]}), window(300, quality={"f1": [0.0]}))["f1"]
    assert (few.test, few.p_value) == ("", 1)


@pytest.mark.parametrize("metric", ["embedding_similarity", "scorer:points"])
def test_scores_of_other_ranges(metric: str) -> None:
    width = 1.0 if metric == "embedding_similarity" else 50.0
    generator = np.random.default_rng(7)
    old = (width * generator.uniform(-1, 1, 400)).tolist()
    same, low = list(old), [max(-width, each - 0.6 * width) for each in old]
    assert quality(old, same, metric).verdict == rollout_pb2.VERDICT_PASS
    assert quality(old, low, metric).verdict == rollout_pb2.VERDICT_FAIL


def test_gates_say_what_is_needed() -> None:
    assert judged(Window(), Window(), None, rollout_pb2.Gates(none=True)).verdict == rollout_pb2.VERDICT_PASS
    found = judged(OLD, window(300), FROZEN, rollout_pb2.Gates(needs=["accuracy", "error_rate"]))
    assert found.verdict == rollout_pb2.VERDICT_INCONCLUSIVE
    assert "not measured: accuracy" in found.reason
    strict = rollout_pb2.Gates(least_requests=1000)
    assert "300 of 1000 requests seen" in judged(OLD, window(300), FROZEN, strict).reason


def test_false_alarms_are_shared_by_the_stages() -> None:
    comparisons = compare(OLD, window(120, 5), FROZEN)
    p = next(each.p_value for each in comparisons if each.metric == "error_rate")
    tested = sum(bool(each.test) for each in comparisons)
    for stages, expected in ((1, rollout_pb2.VERDICT_FAIL), (3, rollout_pb2.VERDICT_INCONCLUSIVE)):
        gates = rollout_pb2.Gates(false_alarm=2 * tested * p)
        assert verdict(gates, comparisons, stages).verdict == expected


COUNTS = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted)
WINDOWS = st.builds(
    lambda seen, gateway, latency, quality, memory: Window(
        seconds=10,
        requests=seen[1],
        failures=seen[0],
        gateway_requests=gateway[1],
        gateway_failures=gateway[0],
        latency=latency,
        quality={"accuracy": quality},
        memory_bytes=memory,
        memory_trend=[(float(second), memory * (1 + second % 3)) for second in range(20)],
    ),
    COUNTS,
    COUNTS,
    st.dictionaries(st.integers(-5, 260), st.integers(0, 200), max_size=20),
    st.lists(st.floats(0, 1), max_size=30),
    st.floats(0, 1e12),
)


@given(WINDOWS, WINDOWS, st.none() | WINDOWS, st.none() | st.floats(0, 1))
def test_no_windows_break_it(before: Window, now: Window, frozen: Window | None, share: float | None) -> None:
    comparisons = compare(before, now, frozen, share)
    assert verdict(GATES, comparisons).verdict != rollout_pb2.VERDICT_UNSPECIFIED
    for each in comparisons:
        assert 0 <= each.p_value <= 1
        assert 0 <= each.no_worse_p_value <= 1
        assert np.isfinite(each.effect)
    assert comparisons == compare(before, now, frozen, share)

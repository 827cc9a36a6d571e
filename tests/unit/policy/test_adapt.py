"""Adaptive weights: bounded, slow, fair to equals, and at rest in the end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.adaptive import measure, worth_writing
from coordinator.policy.adapt import EQUAL, MOST, STEP, Measurement, adapt

_measurements = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(Measurement, st.integers(0, 10_000), st.floats(1e3, 1e12)),
    min_size=1,
)
_weights = st.builds(routing_pb2.NodeWeight, weight=st.integers(0, 2**32 - 1))


def run(previous: list[routing_pb2.NodeWeight], measured: dict[str, Measurement]) -> list[routing_pb2.NodeWeight]:
    return adapt({entry.node: entry for entry in previous}, measured, "1.0.0")


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from("abcdef"), _weights), _measurements, st.integers(0, 100))
def test_weights_are_bounded_and_explained_whatever_came_before(
    previous: dict[str, routing_pb2.NodeWeight], measured: dict[str, Measurement], least: int
) -> None:
    found = adapt(previous, measured, "1.0.0", least_percent=least)
    assert [entry.node for entry in found] == sorted(measured)
    for entry in found:
        assert EQUAL * (least or 25) // 100 <= entry.weight <= MOST
        assert entry.reason


@settings(max_examples=100)
@given(st.lists(_measurements, min_size=1, max_size=10))
def test_a_weight_moves_by_one_step_at_most(rounds: list[dict[str, Measurement]]) -> None:
    held: list[routing_pb2.NodeWeight] = []
    for measured in rounds:
        before = {entry.node: entry.weight for entry in held}
        held = run(held, measured)
        for entry in held:
            was = before.get(entry.node, EQUAL)
            assert abs(entry.weight - was) <= max(1, round(was * STEP))


@settings(max_examples=100)
@given(st.floats(1e5, 1e11), st.integers(2, 6), st.integers(1, 50))
def test_equals_stay_equal(mean_ns: float, nodes: int, rounds: int) -> None:
    held: list[routing_pb2.NodeWeight] = []
    for _ in range(rounds):
        held = run(held, {str(node): Measurement(100, mean_ns) for node in range(nodes)})
    assert {entry.weight for entry in held} == {EQUAL}


def test_too_few_requests_say_nothing() -> None:
    (slow, fast) = run([], {"a": Measurement(9, 1e9), "b": Measurement(1000, 1e6)})
    assert (slow.weight, fast.weight) == (EQUAL, EQUAL)
    assert slow.reason == "not measured yet (9 of 10 requests)"


def test_a_node_of_half_the_speed_gets_less_and_the_reason_says_so() -> None:
    held: list[routing_pb2.NodeWeight] = []
    for _ in range(40):
        held = run(held, {node: Measurement(100, ns) for node, ns in (("a", 1e7), ("b", 1e7), ("slow", 2e7))})
    weights = {entry.node: entry.weight for entry in held}
    assert weights["a"] == weights["b"] > weights["slow"] > 500
    assert held[2].reason.startswith("20 ms a request, 10 ms is typical")


@settings(max_examples=60)
@given(st.lists(st.floats(0.5, 4.0), min_size=2, max_size=6), st.floats(0.1, 0.8))
def test_the_loop_comes_to_rest_when_latency_follows_load(speeds: list[float], load: float) -> None:
    """Each node is a queue (M/M/1: 1 / (speed - arrivals)), so that a weight changes the latency it is made from."""
    held: list[routing_pb2.NodeWeight] = []
    total = load * min(speeds) * len(speeds)  # equal shares overload nobody
    history: list[list[int]] = []
    for _ in range(150):
        weights = [entry.weight for entry in held] or [EQUAL] * len(speeds)
        arrivals = [total * weight / sum(weights) for weight in weights]
        means = [1e9 / max(speed - rate, 0.01) for speed, rate in zip(speeds, arrivals, strict=True)]
        held = run(held, {str(node): Measurement(100, mean) for node, mean in enumerate(means)})
        history.append([entry.weight for entry in held])
    last = history[-30:]
    for node in range(len(speeds)):
        seen = [weights[node] for weights in last]
        assert max(seen) - min(seen) <= 0.1 * max(seen), seen


def test_what_is_measured_is_what_happened_between_two_reports_of_one_load() -> None:
    def load(successes: int, success_ns: int) -> membership_pb2.ModelLoad:
        return membership_pb2.ModelLoad(successes=successes, success_ns=success_ns)

    assert measure(load(10, 1000), load(30, 5000)) == Measurement(20, 200)
    assert measure(load(30, 5000), load(2, 100)) == Measurement(0, 0)  # loaded anew
    assert measure(None, load(2, 100)) == measure(load(2, 100), None) == Measurement(0, 0)


def test_latencies_that_flutter_are_not_written() -> None:
    def weights(weight: int, ms: int) -> routing_pb2.NodeWeights:
        entry = routing_pb2.NodeWeight(version="1.0.0", node="a", weight=weight)
        entry.latency.FromMilliseconds(ms)
        return routing_pb2.NodeWeights(nodes=[entry])

    assert not worth_writing(weights(1000, 100), weights(1000, 110))
    assert worth_writing(weights(1000, 100), weights(1000, 130))
    assert worth_writing(weights(1000, 100), weights(990, 100))
    assert worth_writing(None, weights(1000, 100))
    assert worth_writing(weights(1000, 100), None)
    assert not worth_writing(None, None)

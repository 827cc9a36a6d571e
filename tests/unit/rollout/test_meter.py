"""Measuring: differences of counters through reloads, silence and new leaders; memory, cost and gateways."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.election import Election
from coordinator.mirror import Mirror
from coordinator.rollout.account import MOST_POINTS, Account, Book, done_between
from coordinator.rollout.meter import Meter, price_of, share_of
from coordinator.state import State

Load = membership_pb2.ModelLoad
GIB = 2**30


class Mesh:
    """A mesh of which the test says what its nodes and gateways report."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self.now = 100.0
        self.loads: dict[str, membership_pb2.Load] = {}
        self.gateways: dict[tuple[str, str, str], tuple[int, int]] = {}
        capacity = membership_pb2.Capacity(memory_bytes=8 * GIB)
        nodes = {key: membership_pb2.Node(id=key, capacity=capacity, labels=labels or {}) for key in ("a", "b")}
        needs = registry_pb2.Requirements(memory_bytes=2 * GIB)
        versions = {
            ("m", version): registry_pb2.ModelVersion(name="m", version=version, requirements=needs)
            for version in ("1.0.0", "2.0.0")
        }
        running = rollout_pb2.Rollout(state=rollout_pb2.ROLLOUT_STATE_RUNNING)
        self.mirror = SimpleNamespace(state=State(nodes=nodes, versions=versions, rollouts={"m": running}))
        self.meter = Meter(
            cast(Mirror, self.mirror), cast(Election, SimpleNamespace(term=1)), self.tell, self.count, lambda: self.now
        )
        self.meter.begin("m")

    async def tell(self) -> dict[str, membership_pb2.Load]:
        return self.loads

    async def count(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        return self.gateways

    async def second(self, **models: Load) -> None:
        """One second, with what each node says; nodes that are left out say nothing."""
        self.now += 1
        self.loads = {node: membership_pb2.Load(models=[model]) for node, model in models.items()}
        await self.meter.step()


def load(successes: int, failures: int = 0, version: str = "1.0.0", **more: Any) -> Load:
    """Each success took a millisecond, a tenth of it in the queue."""
    ns, waited = successes * 10**6, successes * 10**5
    return Load(
        name="m", version=version, successes=successes, failures=failures, success_ns=ns, queue_ns=waited, **more
    )


async def test_counts_from_the_first_report_on_through_silence_and_a_reload() -> None:
    mesh = Mesh()
    await mesh.second(a=load(1000, 5))
    assert mesh.meter.windows("m")["1.0.0"].requests == 0, "what came before is of another time"
    await mesh.second(a=load(1010, 6))
    await mesh.second()
    await mesh.second(a=load(1030, 6))
    window = mesh.meter.windows("m")["1.0.0"]
    assert (window.requests, window.failures) == (31, 1)
    assert (window.busy_ns, window.queue_ns) == (30 * 10**6, 30 * 10**5)
    assert window.seconds == pytest.approx(3)
    await mesh.second(a=load(4))
    await mesh.second(a=load(9))
    assert mesh.meter.windows("m")["1.0.0"].requests == 40


async def test_versions_and_nodes_are_kept_apart_and_summed() -> None:
    mesh = Mesh()
    for base in (0, 10):
        await mesh.second(a=load(base, latency_buckets={80: base}), b=load(3 * base, base, "2.0.0"))
    windows = mesh.meter.windows("m")
    assert {version: window.requests for version, window in windows.items()} == {"1.0.0": 10, "2.0.0": 40}
    assert windows["1.0.0"].latency == {80: 10}
    await mesh.second(a=load(20, latency_buckets={80: 20}), b=load(40, latency_buckets={80: 5}))
    assert mesh.meter.windows("m")["1.0.0"].latency == {80: 20}


async def test_begin_counts_anew_and_a_rollout_that_is_over_is_forgotten() -> None:
    mesh = Mesh()
    await mesh.second(a=load(0))
    await mesh.second(a=load(10))
    mesh.meter.begin("m")
    assert mesh.meter.windows("m") == {}
    await mesh.second(a=load(15))
    assert mesh.meter.windows("m")["1.0.0"].requests == 5, "nothing between two steps of a rollout is lost"
    mesh.mirror.state = State(nodes=mesh.mirror.state.nodes)
    await mesh.second(a=load(25))
    assert mesh.meter.windows("m") == {}


async def test_memory_is_a_mean_over_replicas_and_its_trend_is_kept() -> None:
    mesh = Mesh()
    for second in range(4):
        grown = (100 + 10 * second) * 2**20
        await mesh.second(a=load(0, resident_bytes=grown), b=load(0, resident_bytes=grown + 2**20))
    window = mesh.meter.windows("m")["1.0.0"]
    assert window.memory_bytes == pytest.approx(115.5 * 2**20)
    assert [value / 2**20 for _, value in window.memory_trend] == pytest.approx([100.5, 110.5, 120.5, 130.5])
    assert window.gpu_memory_bytes is None
    await mesh.second(a=load(0, version="2.0.0"))
    assert mesh.meter.windows("m")["2.0.0"].memory_bytes is None, "inside Triton's own process it is not known"


async def test_cost_is_the_replicas_share_of_what_its_node_costs() -> None:
    mesh = Mesh({"cost_per_hour": "3.6"})
    await mesh.second(a=load(0), b=load(0))
    for second in range(1, 11):
        await mesh.second(a=load(second), b=load(second))
    assert mesh.meter.windows("m")["1.0.0"].cost == pytest.approx(2 * 10 * 0.25 * 3.6 / 3600)
    unpriced = Mesh()
    await unpriced.second(a=load(0))
    await unpriced.second(a=load(0))
    assert unpriced.meter.windows("m")["1.0.0"].cost is None


async def test_what_gateways_saw_is_added_up_through_a_coordinator_that_starts_anew() -> None:
    mesh = Mesh()
    for counted in ((50, 5), (60, 6), (2, 1), (5, 1)):
        mesh.gateways = {("c1", "m", "2.0.0"): counted, ("c2", "m", "2.0.0"): (7, 0)}
        await mesh.second()
    window = mesh.meter.windows("m")["2.0.0"]
    assert (window.gateway_requests, window.gateway_failures) == (15, 2)


async def test_windows_follow_each_other_and_begin_at_fixed_moments() -> None:
    mesh = Mesh()
    found = {}
    for second in range(131):
        await mesh.second(a=load(10 * second, resident_bytes=2**20))
        found[second] = mesh.meter.latest("m", 60)["1.0.0"]
    assert found[55].requests == mesh.meter.windows("m")["1.0.0"].requests - 750, "the first one begins at the start"
    for first, last in ((65, 115), (125, 130)):  # it grows from one moment on, at most a page before the minute
        assert found[last].requests - found[first].requests == 10 * (last - first)
        assert found[first].requests <= 10 * (first % 60 + 6)
    assert found[130].memory_trend[0][0] >= 0


async def test_a_report_that_breaks_the_count_breaks_only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()

    def poisoned(model: Load) -> Account:
        if model.version == "2.0.0":
            raise ValueError("no such bucket")
        return Account()

    monkeypatch.setattr("coordinator.rollout.meter.memory_of", poisoned)
    with structlog.testing.capture_logs() as logs:
        for second in range(4):
            await mesh.second(a=load(10 * second), b=load(10 * second, version="2.0.0"))
    assert {key: each.requests for key, each in mesh.meter.windows("m").items()} == {"1.0.0": 30}
    assert [(each["event"], each["name"]) for each in logs] == [("meter.fault", "m:2.0.0 on b")], "once, and who"


async def test_scores_are_part_of_the_windows() -> None:
    mesh = Mesh()
    mesh.meter.scores = lambda name, version: {"accuracy": [1.0]} if (name, version) == ("m", "2.0.0") else {}
    await mesh.second(a=load(0), b=load(0, version="2.0.0"))
    assert {key: dict(each.quality) for key, each in mesh.meter.windows("m").items()} == {
        "1.0.0": {},
        "2.0.0": {"accuracy": [1.0]},
    }


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=30))
def test_differences_sum_to_what_was_done_however_often_the_model_is_loaded(
    steps: list[tuple[int, int, bool]],
) -> None:
    held, total, done = load(7), Account(), 0
    for successes, failures, reloaded in steps:
        fresh = reloaded and successes < held.successes  # a reload shows by a counter that falls
        base = load(0) if fresh else held
        now = load(base.successes + successes, base.failures + failures)
        total += done_between(held, now)
        done += successes + failures
        held = now
    assert total.requests == done


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_accounts_are_added_and_taken_off_exactly(counts: list[int]) -> None:
    accounts = [Account(requests=count, latency={count % 7: count}) for count in counts]
    total = sum(accounts, Account())
    for each in accounts:
        total = total - each
    assert total == Account()


def test_a_trend_stays_bounded() -> None:
    book = Book()
    for _ in range(3 * MOST_POINTS):
        book = book.with_step(Account(seconds=1, memory_bytes=1, measured=1), page_s=5, keep_s=60)
    assert len(book.trend) <= MOST_POINTS
    assert len(book.pages) <= 14


def test_prices_and_shares() -> None:
    def node(**labels: str) -> membership_pb2.Node:
        capacity = membership_pb2.Capacity(memory_bytes=8 * GIB, gpus=[membership_pb2.Gpu(memory_bytes=4 * GIB)])
        return membership_pb2.Node(capacity=capacity, labels=labels)

    assert price_of(node(cost_per_hour="2.5")) == 2.5
    assert [price_of(node(cost_per_hour=text)) for text in ("", "much", "-1", "inf", "nan")] == [None] * 5
    needs = registry_pb2.Requirements(memory_bytes=GIB, gpu_memory_bytes=2 * GIB)
    assert share_of(node(), registry_pb2.ModelVersion(requirements=needs), Load()) == 0.5
    assert share_of(node(), None, Load(resident_bytes=2 * GIB)) == 0.25
    assert share_of(membership_pb2.Node(), None, Load(resident_bytes=GIB)) == 0.0

"""What a few timed all-reduces say of a link, and that real workers time them."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from training.run.link import BUDGET_S, SIZES, TINY, Link, Timed, likely_s, link_of, measure_link
from training.strategy.cost import ring
from training.strategy.model import Network


@given(st.integers(2, 32), st.floats(1e5, 1e11), st.floats(1e-6, 0.5), st.integers(1, len(SIZES)))
def test_the_link_of_a_ring_is_found_again(workers: int, bandwidth: float, latency_s: float, sizes: int) -> None:
    network = Network(bandwidth, latency_s)
    timed = [Timed(count, ring(network, workers, count)) for size in SIZES[:sizes] for count in (TINY, size)]
    found = link_of(timed, workers)
    spent = ring(network, workers, SIZES[sizes - 1])
    again = ring(Network(found.bandwidth, found.latency_s), workers, SIZES[sizes - 1])
    assert again == pytest.approx(spent, rel=0.02), "the cost model gets the time that was measured"
    assert found.latency_s == pytest.approx(latency_s + 2 * TINY / workers / bandwidth, rel=1e-6)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from((TINY, *SIZES)), st.floats(1e-7, 10)), min_size=1, max_size=12),
    st.integers(2, 9),
)
def test_whatever_was_timed_gives_figures_that_can_be(timed: list[tuple[int, float]], workers: int) -> None:
    found = link_of([Timed(*one) for one in timed], workers)
    assert 0 < found.bandwidth < float("inf")
    assert found.latency_s > 0


def test_one_that_is_slow_by_chance_does_not_count() -> None:
    timed = [Timed(TINY, 1.0), Timed(TINY, 1e-3), Timed(SIZES[0], 2e-3), Timed(SIZES[0], 0.5)]
    assert link_of(timed, 2).latency_s == pytest.approx(1e-3)
    assert link_of(timed, 2).bandwidth == pytest.approx(SIZES[0] / 1e-3, rel=0.01)
    assert likely_s(timed, 2 * SIZES[0]) == pytest.approx(3e-3)


@given(st.integers(2, 16), st.floats(1.25e6, 1e11), st.floats(1e-6, 1e-2))
def test_it_takes_little_time_from_ten_megabits_a_second_on(workers: int, bandwidth: float, latency_s: float) -> None:
    network, timed, spent = Network(bandwidth, latency_s), list[Timed](), 0.0
    for count in SIZES:
        if timed and spent + likely_s(timed, count) >= BUDGET_S:
            break
        timed += [Timed(size, ring(network, workers, size)) for size in (TINY, count)]
        spent = sum(one.seconds for one in timed)
    rounds = ring(network, workers, TINY)
    assert spent <= max(BUDGET_S, ring(network, workers, SIZES[0])) + 2 * rounds


@pytest.mark.parametrize("budget_s", [0.0, 0.5])
def test_a_group_times_its_link_and_all_stop_together(budget_s: float) -> None:
    """Gloo's ranks as threads: a process group each, made without the process's own."""
    torch_distributed: Any = distributed  # its stubs do not name what is made in C++
    store = torch_distributed.HashStore()
    found: list[Link | None] = [None, None]

    def be(rank: int) -> None:
        group = torch_distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=10))
        found[rank] = measure_link(group, 2, torch.device("cpu"), budget_s)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert all(one is not None and one.bandwidth > 0 and 0 < one.latency_s < 10 for one in found)

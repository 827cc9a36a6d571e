from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.bandwidth import Limit


@given(st.integers(65536, 10**9), st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50))
def test_never_more_than_the_rate_and_a_short_burst(rate: int, sizes: list[int]) -> None:
    now = 0.0
    limit = Limit(rate, lambda: now)
    went: list[tuple[float, int]] = []
    for size in sizes:
        now += limit.due(size)
        went.append((now, size))
    sent = sum(size for _, size in went)
    assert sent <= rate * (went[-1][0] + 0.25) * 1.0001 + 1


def test_no_limit_never_waits() -> None:
    limit = Limit()
    assert limit.due(1 << 40) == 0.0
    assert limit.piece(1 << 20) == 1 << 20


@pytest.mark.parametrize(("rate", "piece"), [(65536, 4096), (1 << 20, 65536), (1 << 30, 1 << 20)])
def test_pieces_are_small_enough_for_many_streams(rate: int, piece: int) -> None:
    assert Limit(rate).piece(1 << 20) == piece


async def test_takers_wait_their_turn() -> None:
    limit = Limit(1 << 20)
    async with asyncio.timeout(5):
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(limit.take(1 << 18) for _ in range(3)))
    assert asyncio.get_running_loop().time() - began >= 0.45

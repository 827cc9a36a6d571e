"""Which workers count as stragglers, from plain figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.training.slowness import CLEAR, LOOKS, STALE_S, Slowness, ratios


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def looks(*times: list[float], apart_s: float = 1.0) -> list[list[float]]:
    clock = Clock()
    made, found = Slowness(clock), []
    for each in times:
        found.append(made.stragglers("j", 1, each))
        clock.now += apart_s
    return found


def test_one_slow_moment_is_no_straggler() -> None:
    fine, slow = [1.0, 1.1], [1.0, 1.8]
    assert not any(map(any, looks(fine, slow, fine, slow, slow, fine)))


def test_who_is_slow_look_after_look_is_one() -> None:
    slow = [1.0, 1.8]
    assert looks(slow, slow, slow) == [[0, 0], [0, 0], [0, 1.8]]


def test_who_is_clearly_slow_is_one_at_the_first_look() -> None:
    assert looks([1.0, 1.0, 2.5]) == [[0, 0, 2.5]]


def test_looks_at_the_same_moment_are_one() -> None:
    slow = [1.0, 1.8]
    assert not any(map(any, looks(*[slow] * 9, apart_s=0.05)))


def test_old_looks_do_not_count() -> None:
    slow = [1.0, 1.8]
    assert not any(map(any, looks(slow, slow, slow, apart_s=STALE_S + 1)))


@given(st.lists(st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_straggler_was_slow_at_each_of_its_looks(times: list[list[float]]) -> None:
    found = looks(*times)
    for place, each in enumerate(found):
        recent = [ratios(one) for one in times[max(0, place - LOOKS + 1) : place + 1]]
        for rank, slow in enumerate(each):
            assert slow == 0 or all(one[rank] >= slow > 1.5 for one in recent)
            assert slow == 0 or len(recent) == LOOKS or slow > CLEAR


@given(st.lists(st.floats(0, 100), max_size=8))
def test_not_all_are_slower_than_the_others(times: list[float]) -> None:
    found = ratios(times)
    assert len(found) == len(times)
    assert sum(ratio > 1 for ratio in found) <= max(0, len(times) - 1)

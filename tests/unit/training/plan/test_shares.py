"""Shares and ranges: everything once, nothing twice, in proportion, the same everywhere."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from training.plan.ranges import pieces, ranges
from training.plan.shares import split

TOTALS = st.integers(0, 10**9)
SPEEDS = st.lists(st.floats(0, 1e9), min_size=1, max_size=20)
SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@given(TOTALS, SPEEDS)
def test_shares_add_up_and_follow_the_speeds(total: int, speeds: list[float]) -> None:
    shares = split(total, speeds)
    assert sum(shares) == total
    known = [Fraction(speed) for speed in speeds if speed]
    mean = sum(known, Fraction(0)) / len(known) if known else Fraction(1)
    weights = [Fraction(speed) or mean for speed in speeds]
    for share, weight in zip(shares, weights, strict=True):
        assert share >= 0
        assert abs(share - total * weight / sum(weights)) < 1


@given(TOTALS, st.integers(1, 64))
def test_equal_speeds_give_equal_shares_and_the_remainder_to_the_first(total: int, workers: int) -> None:
    assert split(total, [3.7] * workers) == [total // workers + (at < total % workers) for at in range(workers)]


@given(TOTALS, st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=10), st.sampled_from([0.25, 2.0, 1024.0]))
def test_only_the_proportion_of_speeds_counts(total: int, speeds: list[float], factor: float) -> None:
    assert split(total, speeds) == split(total, [speed * factor for speed in speeds])


def test_an_unknown_speed_counts_as_the_mean() -> None:
    assert split(12, [1, 0, 3]) == [2, 4, 6]
    assert split(7, [0, 0]) == [4, 3]


@pytest.mark.parametrize(("total", "speeds"), [(1, []), (-1, [1]), (1, [-1]), (1, [float("nan")]), (1, [float("inf")])])
def test_what_cannot_be_split_is_refused(total: int, speeds: list[float]) -> None:
    with pytest.raises(InvalidInputError):
        split(total, speeds)


@given(TOTALS, SPEEDS)
def test_ranges_cover_each_sample_once(total: int, speeds: list[float]) -> None:
    found = ranges(total, speeds)
    assert found[0][0] == 0
    assert found[-1][1] == total
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert [last - first for first, last in found] == split(total, speeds)


@given(SIZES, st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_the_pieces_of_all_ranges_are_all_samples_of_all_files(sizes: list[int], speeds: list[float]) -> None:
    seen = [
        (file, sample)
        for span in ranges(sum(sizes), speeds)
        for file, first, last in pieces(span, sizes)
        for sample in range(first, last)
    ]
    assert seen == [(file, sample) for file, size in enumerate(sizes) for sample in range(size)]


@pytest.mark.parametrize("span", [(-1, 2), (2, 1), (0, 6)])
def test_a_range_beyond_the_files_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="not within"):
        pieces(span, [2, 3])

"""Stages of a pipeline: every layer once, in order, and no other cut is better."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from training.plan.layers import balance

COSTS = st.lists(st.integers(0, 20), min_size=1, max_size=9)


def slowest(costs: list[int], stages: list[tuple[int, int]]) -> int:
    return max(sum(costs[first:last]) for first, last in stages)


@given(st.data(), COSTS)
def test_it_is_the_best_of_all_cuts(data: st.DataObject, costs: list[int]) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    found = balance(costs, stages)
    every = [list(pairwise([0, *places, len(costs)])) for places in combinations(range(1, len(costs)), stages - 1)]
    assert slowest(costs, found) == min(slowest(costs, cut) for cut in every)


@given(st.data(), st.lists(st.floats(0, 1e12), min_size=1, max_size=200))
def test_the_stages_cover_the_layers_in_order(data: st.DataObject, costs: list[float]) -> None:
    stages = data.draw(st.integers(1, min(len(costs), 16)))
    found = balance(costs, stages)
    assert len(found) == stages
    assert found[0][0] == 0
    assert found[-1][1] == len(costs)
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert all(first < last for first, last in found)


def test_more_stages_than_layers_names_both() -> None:
    with pytest.raises(InvalidInputError, match="3 pipeline stages are more than the 2 layers") as caught:
        balance([1, 1], 3)
    assert caught.value.reason == "TOO_MANY_STAGES"


@pytest.mark.parametrize(("costs", "stages"), [([1.0], 0), ([-1.0], 1), ([float("nan")], 1)])
def test_what_cannot_be_cut_is_refused(costs: list[float], stages: int) -> None:
    with pytest.raises(InvalidInputError):
        balance(costs, stages)

"""Stages cover the parts and each has something to train; microbatches cover the batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from training.parallel.stages import microbatches, stage_ranges

PARTS = st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 3)), min_size=1, max_size=12)


@given(PARTS, st.integers(1, 5))
def test_stages_cover_all_parts_in_order_and_each_has_something_to_train(
    parts: list[tuple[float, int]], stages: int
) -> None:
    costs, trained = [cost for cost, _ in parts], [numbers for _, numbers in parts]
    layers = sum(map(bool, trained))
    if layers < stages:
        with pytest.raises(InvalidInputError) as refused:
            stage_ranges(costs, trained, stages)
        assert refused.value.reason == "TOO_MANY_STAGES"
        return
    found = stage_ranges(costs, trained, stages)
    assert len(found) == stages
    assert (found[0][0], found[-1][1]) == (0, len(parts))
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert all(sum(trained[first:last]) for first, last in found)


def test_parts_that_train_nothing_go_with_the_one_before() -> None:
    # A flatten, linear layers with activations between.
    assert stage_ranges([0, 9, 0, 9, 0, 9], [0, 1, 0, 1, 0, 1], 3) == [(0, 3), (3, 5), (5, 6)]
    assert stage_ranges([0, 9, 0, 9, 0, 9, 0, 9], [0, 1] * 4, 2) == [(0, 5), (5, 8)]


@given(st.integers(1, 5000), st.integers(1, 8))
def test_microbatches_cover_the_batch_and_are_alike_but_for_one_rest(batch: int, stages: int) -> None:
    found = microbatches(batch, stages)
    assert sum(count * samples for count, samples in found) == batch
    assert all(count > 0 and samples > 0 for count, samples in found)
    assert found[0][0] <= max(1, 4 * stages)
    if len(found) > 1:
        ((_, samples), (count, rest)) = found
        assert count == 1
        assert rest < samples


def test_a_batch_that_has_a_good_divisor_leaves_no_rest() -> None:
    assert microbatches(32, 2) == [(8, 4)]
    assert microbatches(200, 3) == [(10, 20)]
    assert microbatches(17, 2) == [(5, 3), (1, 2)]
    assert microbatches(1, 4) == [(1, 1)]

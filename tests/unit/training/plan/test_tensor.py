"""Which layers tensor parallelism takes, and over how many workers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from training.plan.tensor import Step, layout, pairs, usable

RELU = Step("relu", "elementwise")
NORM = Step("norm", "other")


def linear(name: str, inputs: int, outputs: int) -> Step:
    return Step(name, "linear", inputs, outputs)


def test_an_mlp_is_one_pair() -> None:
    found = pairs([linear("0", 64, 30), RELU, linear("2", 30, 10)])
    assert [(pair.first.name, pair.second.name, pair.width) for pair in found] == [("0", "2", 30)]
    assert layout(found, 3) == {"0": "columns", "2": "rows"}
    assert layout(found, 4) == {}
    assert [workers for workers in range(2, 7) if usable(found, workers)] == [2, 3, 5, 6]


def test_a_norm_between_needs_all_features() -> None:
    assert pairs([linear("0", 8, 8), NORM, linear("2", 8, 8)]) == []


def test_each_layer_is_in_one_pair() -> None:
    chain = [linear("a", 4, 8), linear("b", 8, 4), RELU, linear("c", 4, 6), RELU, linear("d", 6, 2), linear("e", 2, 2)]
    assert [(pair.first.name, pair.second.name) for pair in pairs(chain)] == [("a", "b"), ("c", "d")]


def test_widths_that_do_not_meet_are_no_pair() -> None:
    assert pairs([linear("a", 4, 8), RELU, linear("b", 16, 4)]) == []


STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.just("n"), st.just("linear"), st.sampled_from([4, 6]), st.sampled_from([4, 6])),
        st.sampled_from([RELU, NORM]),
    ),
    max_size=12,
)


@given(STEPS, st.integers(2, 8))
def test_pairs_never_overlap_and_divide_as_they_say(chain: list[Step], workers: int) -> None:
    named = [Step(str(at), one.kind, one.inputs, one.outputs) for at, one in enumerate(chain)]
    found = pairs(named)
    names = [name for pair in found for name in (pair.first.name, pair.second.name)]
    assert len(names) == len(set(names))
    assert [int(name) for name in names] == sorted(map(int, names))
    assert all(math.gcd(pair.width, workers) == workers for pair in usable(found, workers))
    assert set(layout(found, workers)) <= set(names)

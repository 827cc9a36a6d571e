"""Which parts of a model each worker of a pipeline has, and into what a batch is cut. Pure: knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from training.plan.layers import balance

MICROBATCHES_A_STAGE = 4
"""With so many the bubble is small: Huang et al., "GPipe", 2019, section 2.3."""


def stage_ranges(costs: Sequence[float], trained: Sequence[int], stages: int) -> list[tuple[int, int]]:
    """Half-open ranges of parts, one a stage, balanced by cost. `trained` are the trainable numbers of each part.

    A part without any (an activation, a reshape) goes with the one before it, the first ones with the one after: a
    stage has something to train. Raises InvalidInputError (TOO_MANY_STAGES) when there are fewer such layers.
    """
    begins = [part for part, numbers in enumerate(trained) if numbers]
    edges = [0, *begins[1:], len(costs)] if begins else [0]
    layers = list(pairwise(edges))
    cut = balance([sum(costs[first:last]) for first, last in layers], stages)
    return [(layers[first][0], layers[last - 1][1]) for first, last in cut]


def microbatches(batch: int, stages: int) -> list[tuple[int, int]]:
    """(how many, samples of each) into which a batch is cut, one after the other: all alike, or with a rest at the end.

    Four a stage where that divides the batch well enough, so that all are alike: each form has to be filled and drained
    on its own.
    """
    most = max(1, min(batch, MICROBATCHES_A_STAGE * stages))
    for count in range(most, most // 2, -1):
        if batch % count == 0:
            return [(count, batch // count)]
    size = -(-batch // most)
    count, rest = divmod(batch, size)
    return [(count, size), (1, rest)] if rest else [(count, size)]

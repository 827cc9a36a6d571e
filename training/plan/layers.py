"""Cuts a model's layers into the stages of a pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from meshkit.errors import InvalidInputError


def balance(costs: Sequence[float], stages: int) -> list[tuple[int, int]]:
    """Half-open ranges of layers, one a stage in order, whose largest sum of costs is as small as it can be.

    Every stage has a layer at least. Dynamic programming over prefixes: with S the sums of the first i costs,
    best(k, i) = min over j of max(best(k - 1, j), S[i] - S[j]); the first grows with j and the second falls, so the
    place where they cross is found by bisection: O(layers * stages * log layers). It is the linear partition problem
    (Skiena, The Algorithm Design Manual, 8.5). Raises InvalidInputError for fewer layers than stages, no stages, and
    costs that are negative or not finite.
    """
    _check(costs, stages)
    sums = [0.0, *accumulate(map(float, costs))]
    best = sums[:]
    cuts: list[list[int]] = []
    for stage in range(2, stages + 1):
        cut = [_crossing(best, sums, stage - 1, end) if end >= stage else 0 for end in range(len(sums))]
        best = [
            max(best[place], sums[end] - sums[place]) if end >= stage else math.inf for end, place in enumerate(cut)
        ]
        cuts.append(cut)
    return _walk_back(cuts, len(costs))


def _check(costs: Sequence[float], stages: int) -> None:
    if stages < 1:
        raise InvalidInputError(f"a pipeline of {stages} stages is none", hint="name 1 stage or more")
    if stages > len(costs):
        raise InvalidInputError(
            f"{stages} pipeline stages are more than the {len(costs)} layers that the model can be cut between",
            hint=f"use at most {len(costs)} workers, or another strategy",
            reason="TOO_MANY_STAGES",
        )
    for layer, cost in enumerate(costs):
        if not (math.isfinite(cost) and cost >= 0):
            raise InvalidInputError(f"cost {cost!r} of layer {layer} is not a number from 0 up")


def _crossing(best: Sequence[float], sums: Sequence[float], least: int, end: int) -> int:
    """Where the last stage begins, of `end` layers of which `least` at the least are left for the stages before it."""
    low, high = least, end - 1
    while low < high:
        middle = (low + high) // 2
        if best[middle] >= sums[end] - sums[middle]:
            high = middle
        else:
            low = middle + 1
    # The crossing is the first place where the stages before cost more; the one before it may be the better.
    before = max(low - 1, least)
    return min((low, before), key=lambda place: max(best[place], sums[end] - sums[place]))


def _walk_back(cuts: Sequence[Sequence[int]], layers: int) -> list[tuple[int, int]]:
    """The ranges, from where each number of layers has its last stage begin."""
    found, end = [], layers
    for cut in reversed(cuts):
        found.append((cut[end], end))
        end = cut[end]
    return [(0, end), *reversed(found)]

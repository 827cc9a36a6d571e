"""Which worker writes what every worker has: each number once, and no worker much more than another. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def owners(sizes: Sequence[int], workers: int) -> list[int]:
    """The rank that writes each of some tensors, the same on every worker: largest first, to whom has least so far.

    No rank has more than the mean and one tensor (Graham, "Bounds on multiprocessing timing anomalies", 1969).
    """
    loads = [0] * workers
    found = [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        rank = min(range(workers), key=lambda rank: (loads[rank], rank))
        found[place] = rank
        loads[rank] += sizes[place] or 1
    return found


def own_part(state: Mapping[str, Any], rank: int, workers: int) -> dict[str, Any]:
    """A state without the plain tensors that another worker writes. DTensors and what is no tensor stay: the first are
    different on each worker, the second are small.
    """
    tensors = list(_replicated(state))
    ranks = owners([one.numel() * one.element_size() for one in tensors], workers)
    others = {id(one) for one, owner in zip(tensors, ranks, strict=True) if owner != rank}
    return _without(state, others)


def _replicated(value: Any) -> Iterator[torch.Tensor]:
    """Plain tensors in the order of the state's keys, which is that of the model's code: the same on every worker."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _replicated(one)
    elif isinstance(value, torch.Tensor) and not isinstance(value, DTensor):
        yield value


def _without(state: Mapping[str, Any], others: set[int]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Mapping) and value:
            within = _without(value, others)
            if within:
                kept[name] = within
        elif id(value) not in others:
            kept[name] = value
    return kept

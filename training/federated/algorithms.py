"""How updates become one step of the model. Pure, but for the files that updates lie in.

Sources: FedAvg: H. B. McMahan et al. 2017 (algorithm 1). FedProx: T. Li et al. 2020 (algorithm 2; its term is the
clients' affair, training/federated/local.py). SCAFFOLD: S. P. Karimireddy et al. 2020 (algorithm 1). Coordinate-wise
trimmed mean: D. Yin et al. 2018 (definition 2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from training.federated.updates import BLOCK, Lengths, Update, blocks_of, memory_mapped
from training.federated.wire import CONTROL, Array, Layout, Tensors

Mean = Mapping[str, npt.NDArray[np.float64]]


def clip_scale(length: float, clip: float) -> float:
    """What an update is multiplied by so that it is no longer than `clip`; 1 where that is 0."""
    return min(1.0, clip / length) if clip and length else 1.0


def trimmed(count: int, share: float) -> int:
    """How many are taken off at each end: the share rounded down, with at least one left."""
    return min(math.floor(count * share + 1e-9), (count - 1) // 2)


def trimmed_mean(updates: Sequence[Update], layout: Layout, share: float, clip: float = 0.0) -> Mean:
    """Of each element, the mean of what is left without the largest and smallest; weights do not count.

    Works block by block on the files, with blocks that are the smaller the more updates there are. Raises OSError.
    """
    off = trimmed(len(updates), share)
    mean = {slot.name: np.zeros(slot.count) for slot in layout}
    scales = np.array([clip_scale(update.lengths.model, clip) for update in updates])[:, None]
    files = [memory_mapped(update) for update in updates]
    for slot, first, count in blocks_of(layout, max(1, BLOCK // max(1, len(updates)))):
        block = np.stack([file[slot.name][first : first + count] for file in files]).astype(np.float64) * scales
        block.sort(axis=0)
        mean[slot.name][first : first + count] = block[off : len(updates) - off].mean(axis=0)
    return {slot.name: mean[slot.name].reshape(slot.shape) for slot in layout}


def stepped(model: Tensors, mean: Mean, rate: float) -> dict[str, Array]:
    """The model a server's step along the mean update."""
    return {name: (array + rate * mean[name]).astype(array.dtype) for name, array in model.items()}


def controlled(control: Tensors, mean: Mean, weight: float, before: float, after: float) -> dict[str, Array]:
    """SCAFFOLD's server control variate: the mean of all clients' own, weighted by samples, whoever took part.

    `weight` are the samples of those that took part, `before` and `after` those of all clients as known before this
    round and after it; `before` is 0 where nothing is known. Where all have as many it is the paper's |S| / N.
    """
    kept, share = before / after if before else 1.0, weight / after
    return {name: (kept * array + share * mean[CONTROL + name]).astype(array.dtype) for name, array in control.items()}


def population(samples: Mapping[int, int], clients: int) -> float:
    """Samples of all clients: of those whose number is not known, as many as the others have in the mean."""
    return statistics.fmean(samples.values()) * clients if samples else 0.0


def median_lengths(updates: Sequence[Lengths]) -> Lengths:
    """The lower median of the lengths: of two it is the shorter one's, so that one of two cannot raise it."""
    if not updates:
        return Lengths()
    return Lengths(
        statistics.median_low([one.model for one in updates]),
        statistics.median_low([one.control for one in updates]),
    )


def too_long(lengths: Lengths, median: Lengths, most: float) -> str:
    """What is too long about an update, for people; empty when nothing is. A median of 0 bounds nothing."""
    for what, length, bound in (
        ("update", lengths.model, most * median.model),
        ("control variate's change", lengths.control, most * median.control),
    ):
        if bound and length > bound:
            return f"its {what} is {length:.4g} long, beyond {bound:.4g}, {most:g} times the median"
    return ""


def noisy(mean: Mean, deviation: float, generator: np.random.Generator) -> Mean:
    """The mean with Gaussian noise of a standard deviation on every element."""
    return {name: array + generator.normal(0.0, deviation, array.shape) for name, array in mean.items()}

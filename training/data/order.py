"""Which samples each step takes: a pure function of seed, number of samples, batch size and step.

So another number of workers, or another attempt, goes on at the exact sample, and no loader has a state to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from aimesh.training.v1 import training_pb2
from training.plan.shares import split

Indices = npt.NDArray[np.int64]
_HOLDOUT_STREAM = 1 << 32
"""Of the generator that draws the holdout: no epoch has this number."""


@dataclass(frozen=True)
class Order:
    """The order of `count` samples in batches: each epoch is a new permutation, its last batch takes what is left."""

    seed: int
    count: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches that cover every sample once."""
        return -(-self.count // self.batch_size)

    def batch(self, step: int) -> Indices:
        """The samples of a step (the first is step 0), in order; steps_per_epoch of them cover each exactly once."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return _permutation(self.seed, self.count, epoch)[within * self.batch_size : (within + 1) * self.batch_size]


def part(batch: Indices, rank: int, speeds: Sequence[float]) -> Indices:
    """A worker's part of a batch: in order of rank, as many samples as its speed says. May be empty."""
    shares = split(len(batch), speeds)
    start = sum(shares[:rank])
    return batch[start : start + shares[rank]]


def holdout(seed: int, count: int, share: float) -> tuple[Indices, Indices]:
    """Samples to learn from and samples kept apart, each in ascending order; at least one to learn from."""
    kept = held(count, share)
    order = _generator(seed, _HOLDOUT_STREAM).permutation(count)
    return np.sort(order[kept:]), np.sort(order[:kept])


def held(count: int, share: float) -> int:
    """How many of so many samples are kept apart."""
    return min(round(count * share), max(count - 1, 0))


def total_steps(spec: training_pb2.JobSpec, samples: int) -> int:
    """Optimizer steps of a job that learns from so many samples (those held out not counted)."""
    if spec.steps:
        return int(spec.steps)
    return (spec.epochs or 1) * Order(spec.seed, max(samples, 1), spec.batch_size or 32).steps_per_epoch


@lru_cache(maxsize=2)
def _permutation(seed: int, count: int, epoch: int) -> Indices:
    order: Indices = _generator(seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


def _generator(seed: int, stream: int) -> np.random.Generator:
    """PCG64 seeded with both: NumPy keeps its streams the same from version to version for one bit generator."""
    sequence: Any = np.random.SeedSequence([seed, stream])
    return np.random.Generator(np.random.PCG64(sequence))

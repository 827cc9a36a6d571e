"""Splits one set over clients in ways that are not even, for experiments. Each sample goes to exactly one client.

Sources: iid and label shards: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", 2017 (section 3); Dirichlet: T.-M. H. Hsu et al., "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.data.order import Indices
from training.data.samples import ArraySamples, Samples, Subset, TupleSamples
from training.plan.shares import split

KINDS = ("iid", "dirichlet", "labels")
_STREAM = 21


def partition(
    said: training_pb2.Partition, labels: npt.NDArray[np.int64] | None, count: int, clients: int, seed: int
) -> list[Indices]:
    """The samples of each client, ascending: every one of 0 to `count` once, at least one a client.

    `labels` are needed by all kinds but iid. Raises InvalidInputError (BAD_DATA).
    """
    if count < clients:
        raise _bad(f"{count} samples cannot be split over {clients} clients", "give more data, or fewer clients")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _STREAM])))
    kind = said.kind or "iid"
    if kind == "iid":
        return _iid(count, clients, generator)
    if labels is None:
        raise _bad(f"data.partition {kind!r} needs labels, and the data has none", "use partition iid")
    if kind == "dirichlet":
        return _dirichlet(labels, clients, said.alpha or 0.5, generator)
    if kind == "labels":
        return _label_shards(labels, clients, said.labels_per_client or 2, generator)
    raise _bad(f"data.partition.kind = {kind!r} is not known", f"one of {', '.join(KINDS)}")


def labels_of(samples: Samples) -> npt.NDArray[np.int64] | None:
    """The label of each sample; None where y is missing or holds no whole numbers."""
    if isinstance(samples, Subset):
        all_of = labels_of(samples.samples)
        return None if all_of is None else all_of[samples.indices]
    y: object = None
    if isinstance(samples, ArraySamples) and "y" in samples.names:
        y = samples.whole("y")
    elif isinstance(samples, TupleSamples) and len(samples.arrays) > 1:
        y = np.asarray(samples.arrays[1])
    if not isinstance(y, np.ndarray) or y.ndim != 1 or y.dtype.kind not in "iub":
        return None
    return y.astype(np.int64)


def _iid(count: int, clients: int, generator: np.random.Generator) -> list[Indices]:
    return _cut(generator.permutation(count), split(count, [1.0] * clients))


def _dirichlet(
    labels: npt.NDArray[np.int64], clients: int, alpha: float, generator: np.random.Generator
) -> list[Indices]:
    """Of each label, shares drawn from a symmetric Dirichlet distribution: the smaller alpha, the more uneven."""
    if not alpha > 0:
        raise _bad(f"data.partition.alpha = {alpha!r} cannot be", "above 0")
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == label))
        # Far below 1 a draw can be 0 / 0: then all of the label is one client's, as in the limit.
        shares = generator.dirichlet(np.full(clients, alpha))
        if not np.isfinite(shares).all():
            shares = np.eye(clients)[generator.integers(clients)]
        for client, taken in enumerate(_cut(mine, _by(mine, shares))):
            parts[client].append(taken)
    return _none_empty([np.sort(np.concatenate(part)) for part in parts])


def _by(mine: Indices, shares: npt.NDArray[np.float64]) -> list[int]:
    """Whole numbers by shares some of which are 0, which `split` takes for unknown."""
    positive = [float(share) for share in shares if share > 0]
    sizes = iter(split(len(mine), positive))
    return [next(sizes) if share > 0 else 0 for share in shares]


def _label_shards(
    labels: npt.NDArray[np.int64], clients: int, per_client: int, generator: np.random.Generator
) -> list[Indices]:
    """Samples sorted by label, cut into clients * per_client shards of which each client is dealt per_client."""
    shards = clients * per_client
    if len(labels) < shards:
        raise _bad(
            f"{len(labels)} samples make no {shards} shards for {clients} clients of {per_client} labels",
            "lower data.partition.labels_per_client, or give more data",
        )
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    cut = _cut(order, split(len(order), [1.0] * shards))
    dealt = generator.permutation(shards)
    return [
        np.sort(np.concatenate([cut[shard] for shard in dealt[client * per_client : (client + 1) * per_client]]))
        for client in range(clients)
    ]


def _none_empty(parts: list[Indices]) -> list[Indices]:
    """Each client that has nothing gets a sample of the one that has most."""
    for client, part in enumerate(parts):
        if not len(part):
            richest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[client], parts[richest] = parts[richest][-1:], parts[richest][:-1]
    return parts


def _cut(order: Indices, sizes: Sequence[int]) -> list[Indices]:
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_DATA")

"""Samples in memory or mapped from files, and what becomes of some of them: a batch of tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from meshkit.errors import InvalidInputError

if TYPE_CHECKING:
    from training.data.order import Indices

Array = npt.NDArray[Any]


class Samples(Protocol):
    """Something of which a batch can be made from any of its samples."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: Indices) -> Any:
        """Tensors of some samples, first dimension by sample, in the order asked for."""
        ...


@dataclass(frozen=True)
class Piece:
    """Arrays of one file, equally long: x alone, or x and y."""

    name: str
    arrays: Mapping[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class ArraySamples:
    """Pieces one after the other as one set. A batch is (x, y), or x alone, or a dict for arrays of other names."""

    pieces: tuple[Piece, ...]
    _ends: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(len(piece) for piece in self.pieces)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of its arrays."""
        return tuple(self.pieces[0].arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one sample in an array."""
        return tuple(self.pieces[0].arrays[name].shape[1:])

    def where(self, index: int) -> str:
        """For messages: the file that a sample lies in, and its number there, from 0."""
        piece = bisect_right(self._ends, index)
        before = self._ends[piece - 1] if piece else 0
        return f"{self.pieces[piece].name}, sample {index - before}"

    def take(self, name: str, indices: Indices) -> Array:
        """Some samples of an array, in the order asked for, as an array of their own."""
        if len(self.pieces) == 1:
            return np.asarray(self.pieces[0].arrays[name][indices])
        of = np.searchsorted(self._ends, indices, side="right")
        first = self.pieces[0].arrays[name]
        taken = np.empty((len(indices), *first.shape[1:]), first.dtype)
        for piece in np.unique(of):
            here = of == piece
            before = self._ends[piece - 1] if piece else 0
            taken[here] = self.pieces[piece].arrays[name][indices[here] - before]
        return taken

    def whole(self, name: str) -> Array:
        """An array over all pieces, copied: for labels, not for what is large."""
        return np.concatenate([np.asarray(piece.arrays[name]) for piece in self.pieces])

    def batch(self, indices: Indices) -> Any:
        """See Samples. Floating point is FP32, whole numbers INT64, bytes stay as they are."""
        parts = {name: _tensor(self.take(name, indices)) for name in self.names}
        if tuple(parts) == ("x", "y"):
            return parts["x"], parts["y"]
        return parts["x"] if tuple(parts) == ("x",) else parts


@dataclass(frozen=True)
class TupleSamples:
    """Arrays that a trainer gave as a tuple or as one array, in that form."""

    arrays: tuple[Any, ...]
    alone: bool

    def __len__(self) -> int:
        return len(self.arrays[0])

    def batch(self, indices: Indices) -> Any:
        """See Samples; element types stay as the trainer made them."""
        import torch

        taken = tuple(
            array[torch.from_numpy(np.array(indices))]
            if isinstance(array, torch.Tensor)
            else torch.from_numpy(np.asarray(array[indices]))
            for array in self.arrays
        )
        return taken[0] if self.alone else taken


@dataclass(frozen=True)
class DatasetSamples:
    """A map-style dataset of the trainer's: torch's own way of stacking makes the batch."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Indices) -> Any:
        """See Samples."""
        from torch.utils.data import default_collate

        return default_collate([self.dataset[int(index)] for index in indices])


@dataclass(frozen=True)
class Subset:
    """Some samples of a set, numbered anew."""

    samples: Samples
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Indices) -> Any:
        """See Samples."""
        return self.samples.batch(self.indices[indices])


def as_samples(given: Any, trainer: str) -> Samples:
    """What a trainer's data() gave as Samples. Raises InvalidInputError (BAD_TRAINER) when it is nothing known."""
    if callable(getattr(given, "batch", None)) and hasattr(given, "__len__"):
        samples: Samples = given
        return samples
    if isinstance(given, Mapping) and given:
        arrays = {str(name): np.asarray(value) for name, value in given.items()}
        _check_equal(trainer, arrays)
        return ArraySamples((Piece(trainer, arrays),))
    alone = _is_array(given)
    several = (given,) if alone else given if isinstance(given, tuple | list) else ()
    if several and all(_is_array(array) for array in several):
        _check_equal(trainer, {str(place): array for place, array in enumerate(several)})
        return TupleSamples(tuple(several), alone)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str | tuple):
        return DatasetSamples(given)
    raise InvalidInputError(
        f"trainer {trainer}: data gave {type(given).__name__}, which holds no samples by number",
        hint="return a dataset with __len__ and __getitem__, an array, or a tuple or dict of arrays",
        reason="BAD_TRAINER",
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0


def _check_equal(trainer: str, arrays: Mapping[str, Any]) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInputError(
            f"trainer {trainer}: data gave arrays of unequal length: {lengths}",
            hint="the first dimension is the sample's",
            reason="BAD_TRAINER",
        )


def _tensor(array: Array) -> Any:
    """A tensor; floating point becomes FP32, whole numbers INT64, but bytes stay."""
    import torch

    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64, copy=False)
    return torch.from_numpy(np.ascontiguousarray(array))


def cut(samples: Samples, indices: Sequence[int] | Indices) -> Subset:
    """Some samples as a set of their own."""
    return Subset(samples, np.asarray(indices, np.int64))

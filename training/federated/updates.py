"""Updates of clients, each in a file while it comes: memory stays flat, and one that is refused has touched nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aimesh.training.v1 import federated_pb2
from training.federated.wire import CONTROL, Array, Layout, Reader, Slot

BLOCK = 1 << 18
"""Elements of one tensor that are worked on at a time."""


@dataclass(frozen=True)
class Lengths:
    """Euclidean lengths of an update: of the model's part, and of the control variate's."""

    model: float = 0.0
    control: float = 0.0


@dataclass(frozen=True)
class Update:
    """A whole update that lies in a file, as FP32 and FP64 one tensor after the other."""

    client: int
    round: int
    path: Path
    layout: Layout
    lengths: Lengths
    samples: int
    loss: float
    steps: int = 0
    values: Mapping[str, float] = field(default_factory=dict)

    def blocks(self) -> Iterator[tuple[Slot, int, Array]]:
        """Its elements in blocks: slot, number of the first element, values. Raises OSError."""
        with self.path.open("rb") as file:
            for slot, first, count in blocks_of(self.layout):
                yield slot, first, np.frombuffer(file.read(count * slot.dtype.itemsize), slot.dtype)

    def drop(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)


def blocks_of(layout: Layout, most: int = BLOCK) -> Iterator[tuple[Slot, int, int]]:
    """Slot, first element and number of elements, `most` at the most, of each block, in order."""
    for slot in layout:
        for first in range(0, slot.count, most):
            yield slot, first, min(most, slot.count - first)


class Incoming:
    """An update on its way. `take` its parts, then `finish`; `drop` when it breaks off."""

    def __init__(self, path: Path, layout: Layout, header: federated_pb2.UpdateHeader) -> None:
        self.header = header
        self._path = path
        self._layout = layout
        self._file: BinaryIO = path.open("wb")
        self._squares = {False: 0.0, True: 0.0}
        self._reader = Reader(layout, self._write)

    def take(self, part: federated_pb2.TensorPart) -> None:
        """One part. Raises InvalidInputError (BAD_UPDATE), OSError."""
        self._reader.take(part)

    def finish(self) -> Update:
        """All has come. Raises InvalidInputError (BAD_UPDATE) when it has not."""
        self._reader.end()
        self._file.close()
        header = self.header
        lengths = Lengths(math.sqrt(self._squares[False]), math.sqrt(self._squares[True]))
        values = {name: value for name, value in header.values.items() if math.isfinite(value)}
        return Update(
            client=header.client,
            round=header.round,
            path=self._path,
            layout=self._layout,
            lengths=lengths,
            samples=header.samples,
            loss=header.loss,
            steps=header.steps,
            values=values,
        )

    def drop(self) -> None:
        """Forgets it."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, slot: Slot, first: int, values: Array) -> None:
        self._file.write(values.tobytes())
        wide = values.astype(np.float64)
        self._squares[slot.name.startswith(CONTROL)] += float(wide @ wide)


class Total:
    """A running weighted sum, in FP64: of two clients or of a thousand it takes the same memory."""

    def __init__(self, layout: Layout) -> None:
        self._sums: dict[str, npt.NDArray[np.float64]] = {slot.name: np.zeros(slot.count) for slot in layout}
        self._layout = layout
        self.weight = 0.0

    def add(self, update: Update, weight: float, scale: float = 1.0) -> None:
        """Adds weight times the update, whose part of the model is scaled. Raises OSError."""
        for slot, first, values in update.blocks():
            factor = weight if slot.name.startswith(CONTROL) else weight * scale
            self._sums[slot.name][first : first + len(values)] += values.astype(np.float64) * factor
        self.weight += weight

    def mean(self, divisor: float = 0.0) -> dict[str, npt.NDArray[np.float64]]:
        """The sums over the weights, or over a divisor, in their shapes; zeros when nothing was added."""
        over = divisor or self.weight or 1.0
        return {slot.name: (self._sums[slot.name] / over).reshape(slot.shape) for slot in self._layout}


def memory_mapped(update: Update) -> dict[str, Any]:
    """The tensors of an update as flat arrays that lie in its file: one mapping, for a process may have 65,530."""
    mapped, offset = {}, 0
    whole = (
        np.memmap(update.path, np.uint8, "r") if any(slot.count for slot in update.layout) else np.empty(0, np.uint8)
    )
    for slot in update.layout:
        mapped[slot.name] = whole[offset : offset + slot.bytes].view(slot.dtype)
        offset += slot.bytes
    return mapped

"""Tensors as they travel: each in parts, in the order of a layout that both sides know."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aimesh.training.v1 import federated_pb2
from meshkit.errors import InvalidInputError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
"""By name, in the layout's order; FP32 or FP64."""
PART_BYTES = 1 << 20
"""Most that a part may hold."""
SENT_BYTES = 1 << 17
"""What a part holds when it is sent: gRPC and Python keep about five copies of one for every client that is slow."""
CONTROL = "control/"
"""What names of SCAFFOLD's control variates begin with."""
_TYPES: Mapping[str, Any] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_NAMES = {kind: name for name, kind in _TYPES.items()}


@dataclass(frozen=True)
class Slot:
    """One tensor's place in what travels."""

    name: str
    data_type: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        found: np.dtype[Any] = _TYPES[self.data_type]
        return found

    @property
    def count(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.count * int(self.dtype.itemsize)

    def __str__(self) -> str:
        return f"{self.name} {self.data_type} {list(self.shape)}"


Layout = tuple[Slot, ...]


def layout_of(tensors: Tensors) -> Layout:
    """What these tensors look like. Raises KeyError for other types than FP32 and FP64."""
    return tuple(Slot(name, _NAMES[array.dtype], array.shape) for name, array in tensors.items())


def with_control(layout: Layout, trained: Sequence[str]) -> Layout:
    """The layout followed by the control variates of the parameters that are trained."""
    known = {slot.name: slot for slot in layout}
    return (*layout, *(Slot(CONTROL + name, known[name].data_type, known[name].shape) for name in trained))


def parts_of(tensors: Tensors) -> Iterator[federated_pb2.TensorPart]:
    """Each tensor in parts, in order; one of no elements is one part without data."""
    for slot, array in zip(layout_of(tensors), tensors.values(), strict=True):
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for offset in range(0, max(slot.bytes, 1), SENT_BYTES):
            yield federated_pb2.TensorPart(
                name=slot.name,
                data_type=slot.data_type,
                shape=slot.shape,
                offset=offset,
                data=flat[offset : offset + SENT_BYTES].tobytes(),
            )


class Reader:
    """Takes parts in the order of a layout, and refuses what does not belong there or is not finite."""

    def __init__(self, layout: Layout, sink: Callable[[Slot, int, Array], None]) -> None:
        """`sink` is given each part as a flat array, with its slot and the number of its first element."""
        self._layout = layout
        self._sink = sink
        self._slot = 0
        self._offset = 0

    def take(self, part: federated_pb2.TensorPart) -> None:
        """The next part. Raises InvalidInputError (BAD_UPDATE) that names key, type, shape, place or value."""
        if self._slot >= len(self._layout):
            raise refused(f"tensor {part.name!r} is one too many", "send the round's tensors, each once")
        slot = self._layout[self._slot]
        _check_header(slot, part)
        if part.offset != self._offset:
            raise refused(f"{slot}: a part begins at byte {part.offset}, not {self._offset}", "send parts in order")
        if self._offset + len(part.data) > slot.bytes or len(part.data) > PART_BYTES:
            raise refused(f"{slot}: a part of {len(part.data)} bytes at {part.offset} is too long", "1 MiB at most")
        if len(part.data) % slot.dtype.itemsize or (slot.bytes and not part.data):
            raise refused(f"{slot}: a part of {len(part.data)} bytes holds no whole elements", "send whole elements")
        values = np.frombuffer(part.data, slot.dtype)
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            place = self._offset // slot.dtype.itemsize + bad
            raise refused(f"{slot}: element {place} is {values[bad]}, not a finite number", "look at the client's data")
        self._sink(slot, self._offset // slot.dtype.itemsize, values)
        self._offset += len(part.data)
        if self._offset == slot.bytes:
            self._slot, self._offset = self._slot + 1, 0

    def end(self) -> None:
        """Raises InvalidInputError (BAD_UPDATE) when something is missing."""
        if self._slot < len(self._layout):
            slot = self._layout[self._slot]
            raise refused(f"{slot} is missing from byte {self._offset} on", "send every tensor of the round, whole")


class Gathered:
    """Tensors that are made from parts, for a Reader."""

    def __init__(self, layout: Layout) -> None:
        self.tensors = {slot.name: np.empty(slot.shape, slot.dtype) for slot in layout}

    def __call__(self, slot: Slot, first: int, values: Array) -> None:
        """See Reader."""
        self.tensors[slot.name].reshape(-1)[first : first + len(values)] = values


def refused(message: str, hint: str = "") -> InvalidInputError:
    """An update that cannot be taken."""
    return InvalidInputError(message, hint=hint, reason="BAD_UPDATE")


def _check_header(slot: Slot, part: federated_pb2.TensorPart) -> None:
    if part.name != slot.name:
        raise refused(f"tensor {part.name!r} came where {slot.name!r} belongs", "names and order are the round's")
    if part.data_type != slot.data_type:
        raise refused(f"{slot} came as {part.data_type or 'no type'}", "types are the round's")
    if tuple(part.shape) != slot.shape:
        raise refused(f"{slot} came with shape {list(part.shape)}", "shapes are the round's")

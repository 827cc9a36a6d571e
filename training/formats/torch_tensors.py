"""Tensors of a torch pickle, from its symbols: names by the path that leads to them, types, shapes, storages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.findings import Tensor
from training.formats.arrays import is_size, shape_of
from training.formats.bounded import broken, printable
from training.formats.symbolic import Global, Made, Pairs, Persistent, walk

_STORAGES = {
    "FloatStorage": "FP32", "DoubleStorage": "FP64", "HalfStorage": "FP16", "BFloat16Storage": "BF16",
    "LongStorage": "INT64", "IntStorage": "INT32", "ShortStorage": "INT16", "CharStorage": "INT8",
    "ByteStorage": "UINT8", "BoolStorage": "BOOL", "ComplexFloatStorage": "COMPLEX64",
    "ComplexDoubleStorage": "COMPLEX128", "QInt8Storage": "INT8", "QUInt8Storage": "UINT8", "QInt32Storage": "INT32",
    "UntypedStorage": "UINT8",
}  # fmt: skip
DTYPES = {
    "float32": "FP32", "float": "FP32", "float64": "FP64", "double": "FP64", "float16": "FP16", "half": "FP16",
    "bfloat16": "BF16", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "bool": "BOOL", "complex64": "COMPLEX64",
    "complex128": "COMPLEX128", "float8_e4m3fn": "FP8", "float8_e5m2": "FP8", "float8_e4m3fnuz": "FP8",
    "float8_e5m2fnuz": "FP8", "float8_e8m0fnu": "FP8",
}  # fmt: skip
BYTES_OF = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "FP8": 1, "FP16": 2, "BF16": 2, "INT16": 2, "UINT16": 2, "FP32": 4, "INT32": 4,
    "UINT32": 4, "FP64": 8, "INT64": 8, "UINT64": 8, "COMPLEX64": 8, "COMPLEX128": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """The run of elements that one or several tensors lie in."""

    key: str
    data_type: str
    elements: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * BYTES_OF.get(self.data_type, 1)


@dataclass(frozen=True)
class Stored:
    """A tensor and where it lies."""

    tensor: Tensor
    storage: Storage
    offset: int


def stored_tensors(root: Any) -> list[Stored]:
    """Every tensor below a symbol; two names of one tensor (tied weights) give the first. Raises InvalidInputError."""
    found: dict[tuple[str, int, tuple[int, ...]], Stored] = {}
    for one in _all(root):
        found.setdefault((one.storage.key, one.offset, one.tensor.shape), one)
    return list(found.values())


def is_state_dict(root: Any) -> bool:
    """Whether it is a mapping, as state dicts and checkpoints are, and no object of a class."""
    return isinstance(root, Pairs) or (
        isinstance(root, Made) and isinstance(root.maker, Global) and root.maker.module == "collections"
    )


def _all(root: Any) -> Iterator[Stored]:
    for path, symbol in walk(root):
        if isinstance(symbol, Made) and isinstance(symbol.maker, Global):
            name = symbol.maker.name
            if symbol.maker.module == "torch._utils" and name.startswith(("_rebuild_tensor", "_rebuild_qtensor")):
                yield _tensor(path, symbol.arguments)


def _tensor(path: str, arguments: Any) -> Stored:
    if not isinstance(arguments, tuple) or len(arguments) < 4:
        raise broken(f"tensor {printable(path)!r} is not described as torch does it")
    storage, offset = _storage(path, arguments[0]), arguments[1]
    shape, strides = shape_of(arguments[2]), shape_of(arguments[3])
    if not is_size(offset) or shape is None or strides is None or len(shape) != len(strides):
        raise broken(f"tensor {printable(path)!r} has no plain shape")
    dtype = next((str(one.name) for one in arguments[4:] if isinstance(one, Global) and one.module == "torch"), "")
    typed = DTYPES.get(dtype, storage.data_type)
    tensor = Tensor(path, typed, shape)
    width = BYTES_OF.get(typed, 1) // BYTES_OF.get(storage.data_type, 1) or 1
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if tensor.count and (min(offset, *strides, 0) < 0 or (last + 1) * width > storage.elements):
        raise broken(
            f"tensor {printable(path)!r} of shape {list(shape)} reaches beyond its storage of {storage.elements}"
        )
    return Stored(tensor, storage, offset)


def _storage(path: str, symbol: Any) -> Storage:
    parts = symbol.id if isinstance(symbol, Persistent) else None
    if (
        isinstance(parts, tuple)
        and len(parts) >= 5
        and isinstance(parts[1], Global)
        and isinstance(parts[2], str)
        and is_size(parts[4])
        and parts[4] >= 0
    ):
        return Storage(parts[2], _STORAGES.get(parts[1].name, ""), parts[4])
    raise broken(f"tensor {printable(path)!r} has no storage")

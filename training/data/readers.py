"""Readers of data files, one a form. Nothing is unpickled; what can be mapped into memory is.

Every reader gives arrays by name, `x` and mostly `y`, or raises InvalidInputError (BAD_DATA) that names the file.
"""

from __future__ import annotations

import csv
import json
import lzma
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meshkit.errors import InvalidInputError
from training.data.samples import Array, Piece

_LABELS = ("y", "label", "target", "class")
_TYPES: Mapping[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_LONGEST_HEADER = 1 << 20
_NUMBERS = "fiubc"
"""Kinds of NumPy's element types that are numbers, or truth."""
_UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    csv.Error, lzma.LZMAError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading damaged files was seen to raise, in NumPy, zipfile, json and here: each is said of the file."""


def read(path: Path) -> Piece:
    """One file. Raises InvalidInputError when it is missing, of no known form, damaged, or its arrays disagree."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise bad(f"{path.name} is of no known form", f"known: {', '.join(READERS)}")
    try:
        arrays = reader(path)
    except _UNREADABLE as error:
        raise bad(f"{path.name} cannot be read: {error}", "write it again; pickled objects are not read") from error
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(lengths) != len(arrays) or len(set(lengths.values())) > 1:
        raise bad(
            f"{path.name}: its arrays differ in their number of samples: {lengths}", "x[i] and y[i] are one sample"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in _NUMBERS:
            raise bad(f"{path.name}: {name} holds {array.dtype}, not numbers", "write labels and features as numbers")
    return Piece(path.name, arrays)


def bad(message: str, hint: str) -> InvalidInputError:
    """An error about data."""
    return InvalidInputError(message, hint=hint, reason="BAD_DATA")


def _npy(path: Path) -> dict[str, Array]:
    """One array, mapped."""
    return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}


def _npz(path: Path) -> dict[str, Array]:
    """Arrays x and y; those that are not compressed are mapped."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        return _x_and_y({name: _member(path, archive, info) for name, info in members.items()})


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    form: Any = np.lib.format  # without types
    with archive.open(info) as file:
        if info.compress_type != zipfile.ZIP_STORED:
            array: Array = form.read_array(file, allow_pickle=False)
            return array
        read_header = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"array {info.filename} holds pickled objects")
        header = file.tell()
    with path.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # lengths of name and extra field, in the local header of 30 bytes
        name, extra = struct.unpack("<HH", raw.read(4))
    offset = info.header_offset + 30 + name + extra + header
    return _mapped(path, dtype, shape, offset, order="F" if fortran else "C")


def _safetensors(path: Path) -> dict[str, Array]:
    """Tensors x and y, mapped. The form: 8 bytes of length, a JSON header, raw little-endian tensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header would be {length} bytes")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    arrays = {}
    for name, one in header.items():
        if one["dtype"] not in _TYPES:
            raise ValueError(f"tensor {name} is of type {one['dtype']}; known: {', '.join(_TYPES)}")
        begin, end = one["data_offsets"]
        dtype = np.dtype(_TYPES[one["dtype"]])
        if not 0 <= begin <= end or end - begin != math.prod(one["shape"]) * dtype.itemsize:
            raise ValueError(f"tensor {name} of shape {one['shape']} is not what lies at {begin} to {end}")
        arrays[name] = _mapped(path, dtype, one["shape"], 8 + length + begin)
    return _x_and_y(arrays)


def _mapped(path: Path, dtype: Any, shape: Any, offset: int, *, order: Any = "C") -> Array:
    if 0 in shape:
        return np.empty(shape, dtype)
    count = math.prod(shape) * dtype.itemsize
    if offset + count > path.stat().st_size:
        raise ValueError(f"it ends before its arrays do: {path.stat().st_size} bytes")
    return np.memmap(path, dtype, "r", offset, tuple(shape), order)


def _x_and_y(arrays: dict[str, Array]) -> dict[str, Array]:
    """x first, then y; other names as they are. Raises ValueError without any array."""
    if not arrays:
        raise ValueError("it holds no array")
    return {name: arrays[name] for name in sorted(arrays, key=lambda name: (name != "x", name != "y", name))}


def _csv(path: Path) -> dict[str, Array]:
    """Numbers. With a header, the column y, label, target or class is y; else the last one is."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # what Excel writes begins with a mark of UTF-8
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError("it is empty")
    header = None if _is_numbers(rows[0]) else [name.strip().lower() for name in rows.pop(0)]
    label = next((header.index(name) for name in _LABELS if name in header), -1) if header else -1
    width = len(header or rows[0])
    if width < 2:
        raise ValueError("it has one column, and a label needs others to be told from")
    for number, row in enumerate(rows):
        if len(row) != width or not _is_numbers(row):
            raise ValueError(f"row {number + 1} is not {width} numbers: {','.join(row)[:60]!r}")
    table = np.array(rows, np.float64).reshape(len(rows), width)
    y = table[:, label]
    return {"x": np.delete(table, label, 1).astype(np.float32), "y": _labels(y)}


def _is_numbers(row: list[str]) -> bool:
    try:
        return bool([float(cell) for cell in row])
    except ValueError:
        return False


def _labels(y: Array) -> Array:
    """Whole numbers where all are: labels."""
    with np.errstate(invalid="ignore"):  # of NaN, which is not equal to what it becomes
        whole = y.astype(np.int64)
    return whole if np.array_equal(whole, y) else y.astype(np.float32)


def _jsonl(path: Path) -> dict[str, Array]:
    """A line each: {"x": numbers, "y": number or numbers}, or {"text": ...}, which becomes bytes in a row."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    if "text" in lines[0]:
        return {"text": np.frombuffer("\n".join(str(line["text"]) for line in lines).encode(), np.uint8)}
    arrays = {"x": np.array([line["x"] for line in lines], np.float32)}
    if "y" in lines[0]:
        y = np.array([line["y"] for line in lines], np.float64)
        arrays["y"] = _labels(y) if y.ndim == 1 else y.astype(np.float32)
    return arrays


def _txt(path: Path) -> dict[str, Array]:
    """Its bytes, mapped."""
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with path.open("rb") as file:
        return {"text": np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)}


READERS: Mapping[str, Callable[[Path], dict[str, Array]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".txt": _txt,
}
"""By the ending of a file's name."""

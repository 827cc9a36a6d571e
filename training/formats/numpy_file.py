"""NumPy's .npy files, and .npz archives of them: type and shape from the header; arrays of objects are pickles."""

from __future__ import annotations

import ast
import io
import re

from training.findings import DANGER, Findings, Tensor
from training.formats.bounded import Window, broken, printable
from training.formats.pickles import follow
from training.formats.zips import Archive

MAGIC = b"\x93NUMPY"
_MOST_HEADER_BYTES = 10_000  # numpy.lib.format._MAX_HEADER_SIZE
_NAMES = {
    "b1": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64", "i1": "INT8", "i2": "INT16",
    "i4": "INT32", "i8": "INT64", "f2": "FP16", "f4": "FP32", "f8": "FP64", "c8": "COMPLEX64", "c16": "COMPLEX128",
}  # fmt: skip
_OBJECTS = DANGER + "it holds Python objects: loading it with allow_pickle runs what its pickle says"


def read(window: Window, name: str) -> Findings:
    """One array. Raises InvalidInputError when the header cannot be, or the file is cut short."""
    head = window.head(_MOST_HEADER_BYTES + 12)
    tensor, start, objects = _header(head, name)
    if objects:
        size = window.size - start
        walk = follow(io.BytesIO(window.read(start, min(size, 1 << 26))), size, joblib=False)
        return Findings("numpy", "numpy", tensors=(tensor,)).warn(_OBJECTS, *walk.dangers.warnings)
    return Findings("numpy", "numpy", tensors=(tensor,)).warn("an array, not a model")


def is_archive(archive: Archive) -> bool:
    """Whether all members are arrays by name and beginning."""
    return bool(archive.members) and all(
        name.endswith(".npy") and archive.head(name, len(MAGIC)) == MAGIC for name in archive.members
    )


def read_archive(archive: Archive) -> Findings:
    """All arrays of an .npz. Raises InvalidInputError when a header cannot be."""
    found = [
        _header(archive.head(name, _MOST_HEADER_BYTES + 12), name.removesuffix(".npy")) for name in archive.members
    ]
    made = Findings("numpy", "numpy", tensors=tuple(tensor for tensor, _, _ in found)).warn("arrays, not a model")
    return made.warn(_OBJECTS) if any(objects for _, _, objects in found) else made


def _header(head: bytes, name: str) -> tuple[Tensor, int, bool]:
    """(the array, where its bytes begin, whether they are a pickle). Format: numpy/lib/format.py."""
    wide = len(head) > 6 and head[6] >= 2
    begin = 12 if wide else 10
    length = int.from_bytes(head[8:begin], "little")
    if len(head) < begin or length > _MOST_HEADER_BYTES or len(head) < begin + length:
        raise broken(f"{printable(name)} begins as a NumPy array, but its header is cut short or too long")
    try:
        told = ast.literal_eval(head[begin : begin + length].decode("utf-8").strip())
        code, shape = told["descr"], tuple(told["shape"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        raise broken(f"{printable(name)} is a NumPy array whose header cannot be read") from None
    if not all(isinstance(size, int) and 0 <= size < 1 << 48 for size in shape):
        raise broken(f"{printable(name)} is a NumPy array with a shape that cannot be")
    objects = bool(re.search(r"O", code if isinstance(code, str) else repr(code)))
    plain = code.lstrip("<>|=") if isinstance(code, str) else "record"
    kind = "BYTES" if plain[:1] in ("S", "U", "O") else _NAMES.get(plain, printable(plain))
    return Tensor(printable(name), kind, shape), begin + length, objects

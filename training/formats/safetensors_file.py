"""safetensors: a length, a JSON header, and the bytes of the tensors; the library reads the header alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshkit.errors import PreconditionError
from training.findings import Findings, Tensor
from training.formats.bounded import Window, broken, printable

_MOST_HEADER_BYTES = 32 << 20
_TYPES = {
    "F64": "FP64", "F32": "FP32", "F16": "FP16", "BF16": "BF16", "I64": "INT64", "I32": "INT32", "I16": "INT16",
    "I8": "INT8", "U64": "UINT64", "U32": "UINT32", "U16": "UINT16", "U8": "UINT8", "BOOL": "BOOL", "F8_E4M3": "FP8",
    "F8_E5M2": "FP8", "F8_E8M0": "FP8", "F8_E4M3FNUZ": "FP8", "F8_E5M2FNUZ": "FP8", "F4": "FP4", "C64": "COMPLEX64",
}  # fmt: skip


def recognises(window: Window) -> bool:
    """Whether it begins with a length below 4 GiB and a JSON object, as no other format does."""
    head = window.head(9)
    return len(head) == 9 and head[8:] == b"{" and head[4:8] == bytes(4)


def read(window: Window, path: Path) -> Findings:
    """Tensors and the framework that the header names. Raises InvalidInputError when it is not whole and consistent.

    The library refuses gaps, overlaps and offsets beyond the file, and says which tensor.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise PreconditionError(
            "identifying safetensors files needs the package safetensors", hint="pip install 'aimesh[identify]'"
        ) from None
    length = int.from_bytes(window.head(8), "little")
    if 8 + length > window.size:
        raise broken(f"{path.name} says that its header has {length} bytes, but the file has {window.size}")
    if length > _MOST_HEADER_BYTES:
        raise broken(f"{path.name} says that its header has {length} bytes; {_MOST_HEADER_BYTES} are read")
    try:
        with safe_open(path, framework="np") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            tensors = tuple(_tensor(name, file.get_slice(name)) for name in names)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise broken(f"{path.name} is a safetensors file, but broken: {printable(str(error), 300)}") from None
    framework = {"pt": "pytorch", "tf": "tensorflow"}.get(metadata.get("format", ""), metadata.get("format", ""))
    return Findings("safetensors", printable(framework), tensors=tensors)


def _tensor(name: str, part: Any) -> Tensor:
    data_type = str(part.get_dtype())
    return Tensor(name, _TYPES.get(data_type, data_type), tuple(part.get_shape()))

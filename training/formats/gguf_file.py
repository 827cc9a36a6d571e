"""GGUF: the header's keys and the list of tensors, read with bounds.

The package gguf maps the file, builds every word of the vocabulary and trusts the counts in it: a hostile count keeps
it busy for ever. This reads what identification needs and no more, after ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from training.findings import BITS, Findings, Tensor
from training.formats.bounded import Window, broken, printable

MAGIC = b"GGUF"
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 18
_MOST_WORDS = 1 << 22
_MOST_TEXT = 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_TYPES = {
    0: "FP32", 1: "FP16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "INT8", 25: "INT16", 26: "INT32", 27: "INT64",
    28: "FP64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def recognises(window: Window) -> bool:
    """Whether it begins as GGUF does."""
    return window.head(4) == MAGIC


def read(window: Window) -> Findings:
    """Architecture and tensors. Raises InvalidInputError when the header is broken or the tensors are not all there."""
    cursor = _Cursor(window, 4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise broken(f"GGUF version {version} is not known (2 and 3 are), or the file is big-endian")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
        raise broken(f"a GGUF header with {keys} keys and {tensors} tensors")
    fields = dict(_key(cursor) for _ in range(keys))
    found = [_tensor(cursor) for _ in range(tensors)]
    alignment = fields.get("general.alignment", 32)
    _check_data(window, cursor.offset, alignment if isinstance(alignment, int) else 32, found)
    architecture = str(fields.get("general.architecture", ""))
    return Findings("gguf", "llama.cpp", architecture, _family(architecture), tuple(one for one, _ in found))


@dataclass
class _Cursor:
    window: Window
    offset: int
    words: int = 0

    def number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        (value,) = struct.unpack(f"<{code}", self.window.read(self.offset, size))
        self.offset += size
        return value

    def text(self, *, keep: bool = True) -> str:
        length = self.number("Q")
        if keep and length > _MOST_TEXT:
            keep = False  # a chat template may be long; nothing here asks for it
        if self.offset + length > self.window.size:
            raise broken(f"a text of {length} bytes at {self.offset}, but the file ends at {self.window.size}")
        data = self.window.read(self.offset, length) if keep else b""
        self.offset += length
        return data.decode("utf-8", "replace")

    def skip_list(self, depth: int = 0) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.offset += count * struct.calcsize(f"<{_SCALARS[kind]}")
            if self.offset > self.window.size:
                raise broken(f"a list of {count} numbers reaches beyond the file's end at {self.window.size}")
            return
        self.words += count
        if kind not in (_TEXT, _LIST) or self.words > _MOST_WORDS or depth > 3:
            raise broken(f"a list of {count} values of kind {kind} at byte {self.offset}")
        for _ in range(count):
            if kind == _TEXT:
                self.text(keep=False)
            else:
                self.skip_list(depth + 1)


def _key(cursor: _Cursor) -> tuple[str, Any]:
    name, kind = cursor.text(), cursor.number("I")
    if kind in _SCALARS:
        return name, cursor.number(_SCALARS[kind])
    if kind == _TEXT:
        return name, cursor.text()
    if kind != _LIST:
        raise broken(f"key {printable(name)!r} has a value of unknown kind {kind}")
    cursor.skip_list()
    return name, None


def _tensor(cursor: _Cursor) -> tuple[Tensor, int]:
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > 8:
        raise broken(f"tensor {printable(name)!r} has {dimensions} dimensions")
    # ggml counts from the innermost dimension.
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    kind = cursor.number("I")
    return Tensor(name, _TYPES.get(kind, f"type {kind}"), shape), cursor.number("Q")


def _check_data(window: Window, header: int, alignment: int, tensors: list[tuple[Tensor, int]]) -> None:
    """The tensors' bytes are all there and none overlap."""
    if not 0 < alignment <= 1 << 20:
        raise broken(f"an alignment of {alignment} bytes")
    end, before = -(-header // alignment) * alignment, ""
    for tensor, offset in sorted(tensors, key=lambda one: one[1]):
        begin = -(-header // alignment) * alignment + offset
        if begin < end:
            raise broken(f"tensors {printable(before)!r} and {printable(tensor.name)!r} overlap")
        end, before = begin + int(tensor.count * BITS.get(tensor.data_type, 1) / 8), tensor.name
        if end > window.size:
            raise broken(f"tensor {printable(tensor.name)!r} ends at byte {end}, the file at {window.size}: cut short")


def _family(architecture: str) -> str:
    """llama.cpp's architectures are transformers but for these (src/llama-arch.cpp)."""
    if architecture.startswith(("mamba", "rwkv", "arwkv")):
        return "state-space"
    if architecture in ("wavtokenizer-dec", "clip"):
        return ""
    return "transformer" if architecture else ""

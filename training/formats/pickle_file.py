"""A file that is a pickle, compressed or not: which kind, or that it is none."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from training.findings import Findings
from training.formats import sklearn_file, torch_zip
from training.formats.bounded import Window, broken
from training.formats.pickles import Walk, follow
from training.formats.torch_tensors import stored_tensors

UNPACKED_BYTES = 2 << 30
"""So much of a compressed dump is looked at."""
_MOST_RATIO = 1000
_BOMB_BYTES = 256 << 20
_PIECE = 1 << 16
_XZ_MEMORY = 256 << 20
# What joblib compresses with, by the first bytes (joblib/compressor.py); lz4 has no reader in the standard library.
_PACKED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(47),
    b"\x78": lambda: zlib.decompressobj(47),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    b"\x5d\x00": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
}
_LZ4 = b"\x04\x22\x4d\x18"


class _Unpacker(io.RawIOBase):
    """Decompresses a file in small pieces, and gives up on a bomb."""

    def __init__(self, file: BinaryIO, make: Callable[[], Any]) -> None:
        self._file, self._engine = file, make()
        self._given = 0
        self.cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._piece(min(len(buffer), 1 << 20))
        self._given += len(data)
        if self._given > _BOMB_BYTES and self._given > _MOST_RATIO * self._file.tell():
            raise broken(f"it is a bomb: {self._file.tell()} bytes unpack to more than {self._given}")
        if self._given > UNPACKED_BYTES:
            self.cut = True
            return 0
        buffer[: len(data)] = data
        return len(data)

    def _piece(self, most: int) -> bytes:
        while not self._engine.eof:
            tail = getattr(self._engine, "unconsumed_tail", b"")
            wanted = bool(tail) or not getattr(self._engine, "needs_input", True)
            fresh = tail or (b"" if wanted else self._file.read(_PIECE))
            if not fresh and not wanted:
                return b""
            try:
                data: bytes = self._engine.decompress(fresh, most)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError):
                return b""
            if data:
                return data
        return b""


def read(path: Path, window: Window) -> Findings | None:
    """The findings about a pickle; None when it is none. Raises InvalidInputError when it is one that breaks off."""
    head = window.head(8)
    if head.startswith(_LZ4):
        return Findings("unknown").warn("it is packed with lz4, which is not looked into: pack a joblib dump with zlib")
    for magic, make in _PACKED.items():
        if head.startswith(magic) and (found := _packed(path, make)) is not None:
            return found
    with path.open("rb") as file:
        walk = follow(file, window.size)
    if walk.joblib:  # pickle.load would read the arrays' bytes as opcodes
        with path.open("rb") as file:
            plain = follow(file, window.size, joblib=False)
        walk.dangers.add_all(plain.dangers)
    return _of(walk, window.size, sure=head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _packed(path: Path, make: Callable[[], Any]) -> Findings | None:
    with path.open("rb") as file:
        unpacker = _Unpacker(file, make)
        walk = follow(cast(BinaryIO, io.BufferedReader(unpacker, _PIECE)), None)
        if unpacker.cut:
            walk.dangers.unseen(f"it unpacks to more than {UNPACKED_BYTES >> 30} GiB")
    return _of(walk, None, sure=False)


def _of(walk: Walk, size: int | None, *, sure: bool) -> Findings | None:
    if not (sure and walk.opcodes > 2) and not _is_pickle(walk, size):
        return None
    if walk.is_legacy_torch:
        return _legacy_torch(walk, size)
    if sklearn_file.is_estimator(walk):
        return sklearn_file.read(walk)
    if walk.problem and not walk.dangers.warnings:
        raise broken(f"it begins as a pickle but is broken: {walk.problem}")
    root = walk.roots[0] if walk.roots else None
    if not walk.problem and stored_tensors(root):
        return torch_zip.of_saved(walk, None, {})
    kind = sklearn_file.class_of(root)
    found = Findings("unknown", architecture=kind.name if kind else "")
    return found.warn(*walk.dangers.warnings, "it is a pickle, of no library that is known here")


def _is_pickle(walk: Walk, size: int | None) -> bool:
    """For what does not begin as pickles of protocol 2 or later do: protocols 0 and 1 look like text."""
    if walk.too_long or (walk.dangers.globals and walk.dangers.calls):
        return True
    return not walk.problem and walk.opcodes > 2 and (bool(walk.dangers.globals) or walk.end == size or size is None)


def _legacy_torch(walk: Walk, size: int | None) -> Findings:
    """What torch before 1.6 wrote: the storages' bytes follow the pickles, each after its count of elements."""
    found = torch_zip.of_saved(walk, None, {})
    if not walk.dangers.warnings and size is not None:
        storages = {one.storage.key: one.storage for one in stored_tensors(walk.roots[3])}
        need = walk.end + sum(8 + one.size for one in storages.values())
        if need > size:
            raise broken(f"it is cut short: {size} bytes of {need}")
    return found

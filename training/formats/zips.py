"""Zip archives that may be hostile: the directory is bounded, members do not overlap, and reads stop at a limit."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from meshkit.errors import InvalidInputError
from training.formats.bounded import PIECE_BYTES, broken, printable

MAGIC = b"PK\x03\x04"
MOST_MEMBERS = 200_000
_MOST_RATIO = 1000
_BOMB_BYTES = 1 << 30
_LOCAL_HEADER_BYTES = 30
_ERRORS = (
    zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, OverflowError, IndexError,
    struct.error, zlib.error,
)  # fmt: skip


class _Bounded(io.FileIO):
    """zipfile reads the whole directory at once, as long as the file says that it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = PIECE_BYTES + 1 if size is None or size < 0 else size
        if (data := super().read(min(most, PIECE_BYTES + 1)) or b"") and len(data) > PIECE_BYTES:
            raise zipfile.BadZipFile(f"its directory is larger than {PIECE_BYTES} bytes")
        return data


class Archive:
    """An open zip archive: its members, and their bytes up to a limit."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, name: str) -> None:
        self._file, self._archive, self.name = file, archive, name
        self.members = {info.filename: info for info in archive.infolist()}

    def read(self, name: str, most: int = PIECE_BYTES) -> bytes:
        """A whole member. Raises InvalidInputError when it is longer or damaged."""
        info = self.members[name]
        if info.file_size > most:
            raise broken(f"{self._what(name)} says that it has {info.file_size} bytes, more than {most}")
        data = self.head(name, most + 1)
        if len(data) != info.file_size:
            raise broken(f"{self._what(name)} unpacks to other than the {info.file_size} bytes that it says")
        return data

    def head(self, name: str, count: int) -> bytes:
        """A member's first bytes. Raises InvalidInputError when it is damaged."""
        try:
            with self._archive.open(self.members[name]) as member:
                return member.read(count)
        except _ERRORS as error:
            raise broken(f"{self._what(name)} cannot be read: {str(error)[:200]}") from None

    def place(self, name: str) -> tuple[int, int] | None:
        """Where in the file an uncompressed member's bytes are: offset and size; None when it is compressed."""
        info = self.members[name]
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        self._file.seek(info.header_offset)
        header = self._file.read(_LOCAL_HEADER_BYTES)
        if header[:4] != MAGIC or len(header) != _LOCAL_HEADER_BYTES:
            raise broken(f"{self._what(name)} is not where the directory says")
        start = info.header_offset + len(header) + int.from_bytes(header[26:28], "little")
        return start + int.from_bytes(header[28:30], "little"), info.file_size

    def _what(self, name: str) -> str:
        return f"{self.name}: member {printable(name)!r}"


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a zip archive and checks its directory. Raises InvalidInputError."""
    try:
        file = _Bounded(path)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    with file, archive_in(cast(BinaryIO, file), path.stat().st_size, path.name) as archive:
        yield archive


@contextmanager
def archive_in(file: BinaryIO, size: int, name: str) -> Iterator[Archive]:
    """The same for an open file, or for bytes in memory."""
    try:
        archive = zipfile.ZipFile(file)
    except _ERRORS as error:
        raise broken(f"{name} begins as a zip archive but is cut short or broken: {str(error)[:200]}") from None
    with archive:
        _check(name, size, archive.infolist())
        yield Archive(file, archive, name)


def _check(name: str, size: int, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MOST_MEMBERS:
        raise broken(f"{name} has {len(members)} members, more than {MOST_MEMBERS}")
    if len({info.filename for info in members}) != len(members):
        raise broken(f"{name} holds two members of one name")
    unpacked = sum(info.file_size for info in members)
    if unpacked > _BOMB_BYTES and unpacked > _MOST_RATIO * size:
        raise broken(f"{name} is a zip bomb: {size} bytes that unpack to {unpacked}")
    end = 0
    for info in sorted(members, key=_offset):
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise broken(f"{name}: member {printable(info.filename)!r} is encrypted or packed in an unusual way")
        if info.header_offset < end:
            raise broken(f"{name}: member {printable(info.filename)!r} overlaps the one before it: a zip bomb")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise broken(f"{name}: member {printable(info.filename)!r} has two sizes")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    if end > size:
        raise broken(f"{name} is cut short: its members end at byte {end} of {size}")
    if min(map(_offset, members), default=0):
        raise broken(f"{name} does not begin with its first member: it is cut, or two files in one")


def _offset(info: zipfile.ZipInfo) -> int:
    return info.header_offset

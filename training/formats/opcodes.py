"""The opcodes of a pickle, one at a time, read without running any and without holding long arguments."""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

MOST_OPCODES = 2_000_000
LONG_BYTES = 1 << 16
"""Longer strings are skipped: they are data, not structure."""
KEPT_BYTES = 128 << 20
"""Once strings of this size together were read, all others are skipped."""
_LINE_BYTES = 1 << 16
_TABLE = {ord(one.code): one for one in pickletools.opcodes}
# Opcodes whose argument is preceded by its length: bytes of the length, and whether it has a sign.
_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}


_NUMBER = re.compile(rb"(0|-?[1-9]\d{0,17})L?")


class NotAPickleError(ValueError):
    """The bytes are no pickle, or are one that is broken; the message says where."""


class TooLongError(NotAPickleError):
    """It goes on beyond what is looked at."""


@dataclass(frozen=True, eq=False)
class Skipped:
    """A long string or run of bytes that was not read."""

    size: int


class Source:
    """Bytes in order. They may come out of a decompressor, so that skipping may be reading."""

    def __init__(self, file: BinaryIO, size: int | None = None) -> None:
        self.position = 0
        self._file, self._size = file, size

    def take(self, count: int) -> bytes:
        """Exactly so many bytes. Raises NotAPickleError when they are not there."""
        data = self._file.read(count)
        if len(data) != count:
            raise NotAPickleError(f"it ends at byte {self.position + len(data)}")
        self.position += count
        return data

    def line(self) -> bytes:
        """The bytes up to a line's end, with it. Raises NotAPickleError when there is none for long."""
        data = self._file.readline(_LINE_BYTES)
        if not data.endswith(b"\n"):
            raise NotAPickleError(f"no end of line after byte {self.position}")
        self.position += len(data)
        return data

    def skip(self, count: int) -> None:
        """Leaves bytes out. Raises NotAPickleError when there are not so many."""
        if self._size is None:
            while count:
                count -= len(self.take(min(count, LONG_BYTES)))
            return
        if count > self._size - self.position:
            raise NotAPickleError(f"{count} bytes at {self.position} are named, but it ends at {self._size}")
        self._file.seek(count, io.SEEK_CUR)
        self.position += count


@dataclass(frozen=True)
class Opcode:
    """One opcode, its argument and where it stands."""

    name: str
    argument: Any
    offset: int


class Opcodes:
    """Reads one opcode after another; counts them over all pickles of a file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.count = 0
        self._kept = 0

    def next(self) -> Opcode:
        """The next one. Raises NotAPickleError."""
        offset = self.source.position
        info = _TABLE.get(self.source.take(1)[0])
        if info is None:
            raise NotAPickleError(f"byte {offset} is no opcode")
        self.count += 1
        if self.count > MOST_OPCODES:
            raise TooLongError(f"it has more than {MOST_OPCODES} opcodes")
        return Opcode(info.name, self._argument(info.name, info.arg, offset) if info.arg else None, offset)

    def _argument(self, name: str, kind: pickletools.ArgumentDescriptor, offset: int) -> Any:
        if kind.n == pickletools.UP_TO_NEWLINE:
            return self._lines(name, offset)
        if kind.n in _COUNTED:
            width, signed = _COUNTED[kind.n]
            prefix = self.source.take(width)
            length = int.from_bytes(prefix, "little", signed=signed)
            if length < 0:
                raise NotAPickleError(f"a string of {length} bytes at byte {offset}")
            if length > LONG_BYTES or self._kept > KEPT_BYTES:
                self.source.skip(length)
                return Skipped(length)
            data = prefix + self._keep(self.source.take(length))
        else:
            data = self.source.take(kind.n)
        try:
            return kind.reader(io.BytesIO(data))
        except (ValueError, UnicodeDecodeError, OverflowError) as error:
            raise NotAPickleError(f"argument at byte {offset}: {str(error)[:100]}") from None

    def _lines(self, name: str, offset: int) -> Any:
        """What stands in a line, as Lib/pickle.py takes it; pickletools unescapes names, and knows fewer numbers."""
        line = self._keep(self.source.line())[:-1]
        if name in ("GLOBAL", "INST"):
            second = self._keep(self.source.line())[:-1]
            return line.decode("utf-8", "replace"), second.decode("utf-8", "replace")
        if name in ("GET", "PUT"):
            if not line.isdigit() or len(line) > 18:
                raise NotAPickleError(f"argument at byte {offset} is no number")
            return int(line)
        if name in ("INT", "LONG"):  # others than plain ones are of no interest
            return int(line.rstrip(b"L")) if _NUMBER.fullmatch(line) else line
        if name == "UNICODE":
            return line.decode("raw-unicode-escape", "replace")
        return line.strip(b"\"'").decode("latin-1")

    def _keep(self, data: bytes) -> bytes:
        self._kept += len(data)
        if self._kept > KEPT_BYTES + LONG_BYTES:
            raise TooLongError(f"its strings are more than {KEPT_BYTES} bytes")
        return data

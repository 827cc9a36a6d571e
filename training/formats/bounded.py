"""Reads files that may be hostile: in pieces of bounded size, and never past what is there."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from meshkit.errors import InvalidInputError

PIECE_BYTES = 64 << 20
"""No single read takes more."""
_PAGE_BYTES = 1 << 16


def broken(what: str) -> InvalidInputError:
    """The error of a file that is what its first bytes say, but not whole or not right."""
    return InvalidInputError(what, hint="copy, download or export it again", reason="BROKEN_MODEL")


class Window:
    """A file, or a part of one, read by offset. Small reads come from a page that is kept."""

    def __init__(self, file: BinaryIO, size: int, start: int = 0) -> None:
        self.size = size
        self._file, self._start = file, start
        self._page, self._page_at = b"", 0

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`. Raises InvalidInputError when they are not all there, or too many."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise broken(f"{count} bytes at {offset} are named, but it ends at {self.size}")
        if count > PIECE_BYTES:
            raise broken(f"a piece of {count} bytes at {offset} is larger than {PIECE_BYTES} bytes")
        if count > _PAGE_BYTES:
            return self._load(offset, count)
        if not self._page_at <= offset <= offset + count <= self._page_at + len(self._page):
            self._page = self._load(offset, min(_PAGE_BYTES, self.size - offset))
            self._page_at = offset
        begin = offset - self._page_at
        return self._page[begin : begin + count]

    def head(self, count: int) -> bytes:
        """The first bytes, fewer when there are no more."""
        return self.read(0, min(count, self.size))

    def _load(self, offset: int, count: int) -> bytes:
        self._file.seek(self._start + offset)
        data = self._file.read(count)
        if len(data) != count:
            raise broken(f"it became shorter than {self.size} bytes while it was read")
        return data


@contextmanager
def open_window(path: Path) -> Iterator[Window]:
    """A whole file. Raises InvalidInputError when it cannot be opened."""
    try:
        with path.open("rb") as file:
            yield Window(file, path.stat().st_size)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from None


def window_of(data: bytes) -> Window:
    """Bytes that are in memory already, as a window."""
    return Window(io.BytesIO(data), len(data))


def parse_json(data: bytes, what: str) -> Any:
    """Parsed JSON. Raises InvalidInputError, also for nesting that no honest file has."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise broken(f"{what} is not valid JSON: {str(error)[:200]}") from None


def printable(text: str, most: int = 120) -> str:
    """Text out of a file, fit for a message: one line, no control characters, not long."""
    safe = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return safe if len(safe) <= most else safe[: most - 1] + "…"

"""A large blob on its way: a sparse file, and which of its chunks are there.

A chunk counts once its bytes were seen to be what the chunk list says. Nothing is kept about that on disk: after a
restart what lies there is looked at again, so no crash can make a chunk count that is not whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from meshkit import chunks
from meshkit.errors import DataLossError
from meshkit.failpoints import failpoint


class Partial:
    """One blob's chunks. Methods that read or write block on the disk; no two threads write the same chunk."""

    def __init__(self, path: Path, size: int, digests: Sequence[bytes]) -> None:
        """`digests` are the sha256 of each chunk. Looks at what an earlier run left at `path`."""
        self.path = path
        self.size = size
        self._digests = tuple(digests)
        self._held: set[int] = set()
        self.check()

    def is_of(self, size: int, digests: Sequence[bytes]) -> bool:
        """Whether it goes by this list of chunks: lists of one blob differ when somebody pushed a wrong one."""
        return (self.size, self._digests) == (size, tuple(digests))

    def held(self) -> frozenset[int]:
        """Chunks that are here and verified, by number."""
        return frozenset(self._held)

    def missing(self) -> list[int]:
        """All others, in order."""
        return [number for number in range(len(self._digests)) if number not in self._held]

    def held_bytes(self) -> int:
        """Bytes of the chunks that are here."""
        last = len(self._digests) - 1
        short = chunks.CHUNK - chunks.span(last, self.size)[1] if last in self._held else 0
        return len(self._held) * chunks.CHUNK - short

    def __len__(self) -> int:
        """How many chunks are here."""
        return len(self._held)

    def covers(self, offset: int, length: int) -> bool:
        """Whether all of these bytes are in chunks that are here."""
        end = min(self.size, offset + length if length else self.size)
        return offset + length <= self.size and self._held.issuperset(chunks.covering(offset, end - offset))

    def check(self) -> None:
        """Looks at every chunk on disk anew."""
        self._held.clear()
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
            os.truncate(file.fileno(), self.size)
            for number in _written(file.fileno(), self.size):
                start, length = chunks.span(number, self.size)
                if chunks.fits(os.pread(file.fileno(), length, start), self._digests[number]):
                    self._held.add(number)

    def write(self, number: int, data: bytes | bytearray) -> None:
        """Takes a chunk. Raises DataLossError, and takes nothing, when it is not what the list says; OSError."""
        if not chunks.fits(data, self._digests[number]):
            raise DataLossError(f"chunk {number} came with other content", reason="DIGEST_MISMATCH")
        failpoint("chunk.write")
        with self.path.open("r+b", buffering=0) as file:
            start, view = chunks.span(number, self.size)[0], memoryview(data)
            while view:
                written = os.pwrite(file.fileno(), view, start)
                start, view = start + written, view[written:]
        self._held.add(number)


def _written(descriptor: int, size: int) -> Iterator[int]:
    """The chunks of a sparse file in which something was written."""
    position = 0
    while position < size:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # no data from here on
            return
        number = position // chunks.CHUNK
        yield number
        position = (number + 1) * chunks.CHUNK

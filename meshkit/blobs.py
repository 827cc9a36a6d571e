"""Blobs on disk by the sha256 of their content: <root>/blobs/<digest>, and <root>/partial/<digest> on their way.

A blob under its digest is whole and was verified when it came; verify it again before use, since disks lie. Crash-safe
between any two lines: a blob appears by a rename after its bytes are on disk. One process a root. Methods block on the
disk: call big ones in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from meshkit.errors import DataLossError, ExhaustedError, InvalidInputError, NotFoundError
from meshkit.failpoints import failpoint
from meshkit.files import is_full, sync, sync_directory

CHUNK_BYTES = 1024 * 1024
"""Most bytes in one message of a blob's transfer."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """The blobs below one directory."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._partial = root / "partial"
        for directory in (self._blobs, self._partial):
            directory.mkdir(parents=True, exist_ok=True)
        self._held = {name for name, _ in entries(self._blobs) if _DIGEST.fullmatch(name)}

    def path(self, digest: str) -> Path:
        """Where a blob lies or would lie. Raises InvalidInputError when it is no digest."""
        return self._blobs / checked(digest)

    def held(self) -> frozenset[str]:
        """Digests of the blobs that are here whole."""
        return frozenset(self._held)

    def used_bytes(self) -> int:
        """Bytes on disk, partial blobs included."""
        return sum(status.st_size for root in (self._blobs, self._partial) for _, status in entries(root))

    def received(self, digest: str) -> int:
        """Bytes that are here, of a whole blob or a partial one: where to resume."""
        for root in (self._blobs, self._partial):
            with contextlib.suppress(FileNotFoundError):
                return (root / checked(digest)).stat().st_size
        return 0

    def append(self, digest: str, data: bytes) -> int:
        """Adds bytes to a partial blob; gives how many it has now. Raises ExhaustedError when the disk is full."""
        path = self._partial / checked(digest)
        try:
            failpoint("blob.append")
            with path.open("ab") as file:
                file.write(data)
                return file.tell()
        except OSError as error:
            if not is_full(error):
                raise
            raise ExhaustedError(
                f"no space left for blob {digest} in {self._partial}", hint="free space there", reason="DISK_FULL"
            ) from None

    def commit(self, digest: str) -> Path:
        """Makes a partial blob a whole one. Raises DataLossError, and discards it, when it has another digest."""
        source = self._partial / checked(digest)
        source.touch()
        found = sha256_of(source)
        if found != digest:
            source.unlink()
            raise DataLossError(f"blob {digest} came with other content ({found})", reason="DIGEST_MISMATCH")
        return self._place(source, digest)

    def _place(self, source: Path, digest: str) -> Path:
        """Makes a verified file below the root a blob."""
        with source.open("rb") as file:
            os.fchmod(file.fileno(), 0o444)  # models get hard links to it
            sync(file.fileno())
        source.rename(self._blobs / digest)
        sync_directory(self._blobs)
        self._held.add(digest)
        return self._blobs / digest

    def verify(self, digest: str) -> bool:
        """Whether a blob is here and its content has the digest; one that has not is discarded. Marks it as used."""
        path = self.path(digest)
        if not path.exists() or sha256_of(path) != digest:
            path.unlink(missing_ok=True)
            self._held.discard(digest)
            return False
        status = path.stat()
        os.utime(path, (time.time(), status.st_mtime))  # Triton looks at the time of modification
        return True

    def read(self, digest: str, offset: int, length: int = 0) -> Iterator[bytes]:
        """A whole blob's bytes from an offset, at most `length` when that is not 0, in pieces of at most 1 MiB.

        Raises NotFoundError when it is not held whole.
        """
        if digest not in self._held:
            raise NotFoundError(
                f"blob {checked(digest)} is not held here", hint="ask another coordinator, or push again"
            )
        with self.path(digest).open("rb") as file:
            file.seek(within(file, offset))
            yield from pieces(file, length)

    def discard(self, digest: str) -> None:
        """Forgets a blob, whole or partial; no error when there is none."""
        for root in (self._blobs, self._partial):
            (root / checked(digest)).unlink(missing_ok=True)
        self._held.discard(digest)


def entries(directory: Path) -> list[tuple[str, os.stat_result]]:
    """Names and states of a directory's files; one that goes meanwhile (a rename in another thread) is left out."""
    found = []
    for entry in os.scandir(directory):
        with contextlib.suppress(FileNotFoundError):
            found.append((entry.name, entry.stat()))
    return found


def within(file: BinaryIO, offset: int) -> int:
    """The offset, or the file's end when it lies beyond: somebody may ask for more than a seek takes."""
    return min(offset, os.fstat(file.fileno()).st_size)


def pieces(file: BinaryIO, length: int = 0, most: int = CHUNK_BYTES) -> Iterator[bytes]:
    """An open file's next bytes, at most `length` when that is not 0, in pieces of at most `most`."""
    left = length or sys.maxsize
    while left and (piece := file.read(min(most, left))):
        left -= len(piece)
        yield piece


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(digest: str) -> str:
    """The digest itself. Raises InvalidInputError when it is none."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidInputError(f"{digest!r} is no sha256 digest (64 lower-case hex digits)")
    return digest

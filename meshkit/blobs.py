"""Blobs on disk by the sha256 of their content; partial ones grow beside them until they are whole and verified.

Crash-safe between any two lines: a blob has its name only once its content was checked and is on disk. Every method
blocks; call them through asyncio.to_thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from meshkit.errors import (
    AimeshError,
    DataLossError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)

CHUNK_BYTES = 1024 * 1024
"""Most bytes in one message of a blob's transfer."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Blobs below one directory: blobs/<digest> when whole, partial/<digest> on the way."""

    def __init__(self, root: Path) -> None:
        self._whole = root / "blobs"
        self._partial = root / "partial"
        for folder in (self._whole, self._partial):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """The whole blob's file. Raises NotFoundError when it is not held whole."""
        found = self._whole / _checked(digest)
        if not found.exists():
            raise NotFoundError(f"blob {digest} is not held here", hint="ask another coordinator, or push again")
        return found

    def has(self, digest: str) -> bool:
        """Whether the blob is held whole."""
        return (self._whole / _checked(digest)).exists()

    def received(self, digest: str) -> int:
        """Bytes held, whole or partial."""
        for folder in (self._whole, self._partial):
            with contextlib.suppress(FileNotFoundError):
                return (folder / _checked(digest)).stat().st_size
        return 0

    def digests(self) -> list[str]:
        """All blobs held whole, sorted."""
        return sorted(entry.name for entry in self._whole.iterdir())

    def append(self, digest: str, offset: int, data: bytes) -> None:
        """Adds to a partial blob.

        Raises PreconditionError when offset is not what is held, ExhaustedError on a full disk.
        """
        held = self.received(digest)
        if offset != held:
            raise PreconditionError(
                f"blob {digest}: {held} bytes are held, not {offset}", hint="ask StatBlob and go on from there"
            )
        with self._disk_errors(digest), (self._partial / digest).open("ab") as file:
            file.write(data)

    def finish(self, digest: str) -> None:
        """Checks a partial blob and gives it its name.

        Raises DataLossError, and forgets the blob, when its content has another digest.
        """
        partial = self._partial / _checked(digest)
        if not partial.exists() and not self.has(digest):
            partial.touch()  # the empty blob
        if not partial.exists():
            return
        found = sha256_of(partial)
        if found != digest:
            partial.unlink()
            raise DataLossError(f"blob {digest} arrived with content {found}", hint="send it again from its start")
        with self._disk_errors(digest), partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(self._whole / digest)
        _sync_folder(self._whole)

    def check(self, digest: str) -> None:
        """Reads a whole blob again. Raises DataLossError, and forgets it, when a byte has changed on disk."""
        path = self.path(digest)
        found = sha256_of(path)
        if found != digest:
            path.unlink()
            raise DataLossError(f"blob {digest} has content {found} on disk", hint="it is fetched again")

    def read(self, digest: str, offset: int) -> Iterator[bytes]:
        """The blob's bytes from an offset, in chunks. Raises NotFoundError when it is not held whole."""
        with self.path(digest).open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def remove(self, digest: str) -> None:
        """Forgets a blob, whole or partial; no error when there is none."""
        for folder in (self._whole, self._partial):
            (folder / _checked(digest)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk_errors(self, digest: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ExhaustedError(
                    f"no space left for blob {digest} in {self._whole.parent}",
                    hint="free space there",
                    reason="DISK_FULL",
                ) from None
            raise AimeshError(f"cannot write blob {digest} in {self._whole.parent}: {error}") from error


def sha256_of(path: Path) -> str:
    """A file's sha256, 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidInputError(f"{digest!r} is no digest", hint="64 lower-case hex digits of a sha256")
    return digest


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

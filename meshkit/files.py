"""Writing files so that a crash at any moment leaves the old content or the new, never half of one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

SECRET = 0o600
"""Mode of files that only their owner may read."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""No space, none of one's quota, and a file that may grow no further."""


def is_full(error: BaseException) -> bool:
    """Whether a disk has said that it has no room."""
    return isinstance(error, OSError) and error.errno in FULL


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replaces `path` with `content`, on disk when it returns; with `mode`, nobody else may look even for a moment."""
    temporary = path.with_name(path.name + ".new")
    if mode is not None:
        temporary.unlink(missing_ok=True)  # an old one could be open to others
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    with temporary.open("wb") as file:
        file.write(content)
        sync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync(descriptor: int) -> None:
    """Waits until an open file's content is on disk."""
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Waits until a directory's entries (a rename in it) are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writing files so that a crash at any moment leaves the old content or the new, never half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` with `content`, on disk when it returns."""
    temporary = path.with_name(path.name + ".new")
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

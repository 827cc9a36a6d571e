"""The node's blobs: at most so many bytes of them, the least recently used going first."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from meshkit.blobs import BlobStore, entries
from meshkit.errors import ExhaustedError


class ModelStore(BlobStore):
    """At most `limit_bytes` of blobs, partial ones included."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        super().__init__(root)
        self.limit_bytes = limit_bytes
        self._reserved: dict[str, int] = {}

    @contextmanager
    def reserved(self, digest: str, size: int, keep: Collection[str]) -> Iterator[None]:
        """Room for a blob of `size` bytes while it comes, made by `make_room`. Raises ExhaustedError."""
        self.make_room(size - self.received(digest), {*keep, *self._reserved, digest})
        self._reserved[digest] = size
        try:
            yield
        finally:
            del self._reserved[digest]

    def make_room(self, needed: int, keep: Collection[str]) -> list[str]:
        """Evicts blobs that are not in `keep`, least recently used first, until `needed` more bytes fit.

        Partial blobs that are not in `keep` go first. Gives the evicted digests. Raises ExhaustedError, having evicted
        nothing, when even all of them would not be enough.
        """
        promised = sum(max(0, size - self.received(digest)) for digest, size in self._reserved.items())
        needed += promised
        excess = self.used_bytes() + needed - self.limit_bytes
        free_disk = shutil.disk_usage(self._blobs).free
        excess = max(excess, needed - free_disk)
        victims = self._evictable(keep)
        if excess > sum(size for _, size in victims):
            raise ExhaustedError(
                f"the model store {self._blobs.parent} needs {needed} more bytes: {self.used_bytes()} of "
                f"{self.limit_bytes} are used by assigned models, and the disk has {free_disk} free",
                hint="raise agent.disk_bytes, free the disk, or assign less to this node",
                reason="STORE_FULL",
            )
        evicted = []
        for path, size in victims:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            self._held.discard(path.name)
            excess -= size
            evicted.append(path.name)
        return evicted

    def no_space(self, needed: int) -> ExhaustedError:
        """What to raise when the disk filled up while a blob of `needed` bytes came."""
        free = shutil.disk_usage(self._blobs).free
        return ExhaustedError(
            f"no space left on the disk of {self._blobs}: a file of {needed} bytes is to go there, {free} are free",
            hint="free the disk; it is tried again by itself",
            reason="DISK_FULL",
        )

    def _evictable(self, keep: Collection[str]) -> list[tuple[Path, int]]:
        """Files that may go, with their sizes, the first to go first."""
        found = [
            (root is self._blobs, status.st_atime, root / name, status.st_size)
            for root in (self._partial, self._blobs)
            for name, status in entries(root)
            if name not in keep
        ]
        return [(path, size) for _, _, path, size in sorted(found)]

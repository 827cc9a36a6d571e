"""The node's blobs: at most so many bytes of them, the least recently used going first."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from meshkit.blobs import BlobStore, checked, entries, sha256_of, within
from meshkit.errors import DataLossError, ExhaustedError, NotFoundError
from node_agent.partial import Partial


class ModelStore(BlobStore):
    """At most `limit_bytes` of blobs, partial ones included. Those that come in chunks lie in <root>/chunked."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        super().__init__(root)
        self.limit_bytes = limit_bytes
        self._reserved: dict[str, int] = {}
        self._chunked = root / "chunked"
        self._chunked.mkdir(parents=True, exist_ok=True)
        self._coming: dict[str, Partial] = {}
        self._pins: dict[str, frozenset[str]] = {}
        self._spare: frozenset[str] = frozenset()

    def pin(self, owner: str, digests: Collection[str]) -> None:
        """These are never evicted, in place of what this owner pinned before."""
        self._pins[owner] = frozenset(digests)

    def pinned(self) -> frozenset[str]:
        """What is never evicted, by any owner."""
        return frozenset().union(*self._pins.values())

    def spare(self, digests: Collection[str]) -> None:
        """These are evicted last, in place of what was said so before."""
        self._spare = frozenset(digests)

    def link(self, source: Path, digest: str) -> Path:
        """Makes a file that lies elsewhere a blob of this digest, which is the caller's word; the two share their bytes
        where the disk allows it. Raises OSError."""
        place = self._partial / checked(digest)
        place.unlink(missing_ok=True)
        link_or_copy(source, place)
        return self._place(place, digest)

    def put(self, content: bytes, digest: str) -> Path:
        """Makes some bytes a blob of this digest, which is the caller's word. Raises OSError."""
        place = self._partial / checked(digest)
        place.write_bytes(content)
        return self._place(place, digest)

    def used_bytes(self) -> int:
        """Bytes on disk, partial blobs included."""
        return super().used_bytes() + sum(_on_disk(status) for _, status in entries(self._chunked))

    def received(self, digest: str) -> int:
        """Bytes that are on disk, of a whole blob or a partial one."""
        if found := super().received(digest):
            return found
        with suppress(FileNotFoundError):
            return _on_disk((self._chunked / digest).stat())
        return 0

    def discard(self, digest: str) -> None:
        """Forgets a blob, whole or partial; no error when there is none."""
        super().discard(digest)
        self._coming.pop(digest, None)
        (self._chunked / digest).unlink(missing_ok=True)

    def coming(self, digest: str, size: int, digests: Sequence[bytes]) -> Partial:
        """The blob as far as it has come in chunks; `digests` are their sha256, anew when another list came before."""
        if digest not in self._coming or not self._coming[digest].is_of(size, digests):
            self._coming[digest] = Partial(self._chunked / checked(digest), size, digests)
        return self._coming[digest]

    def commit_chunks(self, digest: str) -> bool:
        """Makes a blob whose chunks are all here a whole one. False when chunks went bad on the disk: fetch them again.

        Raises DataLossError, and discards it, when each chunk is as the list says and the whole is not.
        """
        partial = self._coming[digest]
        if (found := sha256_of(partial.path)) != digest:
            partial.check()
            if partial.missing():
                return False
            self.discard(digest)
            raise DataLossError(f"blob {digest} came with other content ({found})", reason="DIGEST_MISMATCH")
        self._place(partial.path, digest)
        self._coming.pop(digest, None)
        return True

    def open_range(self, digest: str, offset: int, length: int) -> BinaryIO:
        """An open file that stands at these bytes, all of them verified; to the blob's end when `length` is 0.

        Raises NotFoundError when they are not here. The caller closes it.
        """
        whole, partial = digest in self._held, self._coming.get(digest)
        path = self.path(digest)
        if not whole and partial is not None and partial.covers(offset, length):
            path = partial.path
        for place in (path, self.path(digest)):  # the second: perhaps it has just become whole
            with suppress(FileNotFoundError):
                file = place.open("rb")
                file.seek(within(file, offset))
                return file
        raise NotFoundError(f"these bytes of blob {digest} are not held here")

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
            self._coming.pop(path.name, None)
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
        kept = self.pinned().union(keep)
        found = [
            (name in self._spare, root is self._blobs, status.st_atime, root / name, measure(status))
            for root, measure in ((self._partial, _size), (self._chunked, _on_disk), (self._blobs, _size))
            for name, status in entries(root)
            if name not in kept
        ]
        return [(path, size) for *_, path, size in sorted(found)]


def link_or_copy(source: Path, place: Path) -> None:
    """A second name for a file where the disk gives one, else a copy. Raises OSError."""
    try:
        place.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, place)


def _on_disk(status: os.stat_result) -> int:
    """Bytes that a file takes; a sparse one takes less than its size."""
    return min(status.st_size, status.st_blocks * 512)


def _size(status: os.stat_result) -> int:
    return status.st_size

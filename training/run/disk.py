"""A full disk: how it is told from other errors, and how files are written so that it costs no more than the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from meshkit.files import is_full

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Enduring(io.FileIO):
    """Goes on taking what is written after the disk took no more, and keeps what the disk said."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file for torch to write, which raises what the disk said at its end, the file being removed then.

    While torch writes an archive, an error ends the process (SIGABRT): its writer's destructor throws.
    """
    raw = _Enduring(path, "w")
    try:
        with io.BufferedWriter(raw) as file:
            yield cast(BinaryIO, file)
    finally:
        if raw.error is not None:
            path.unlink(missing_ok=True)
            raise OSError(raw.error.errno, raw.error.strerror, str(path)) from None


class _Forgiving(io.FileIO):
    """Takes what there is room for; the rest is lost."""

    def write(self, data: ReadableBuffer) -> int:
        left = memoryview(data).cast("B")
        count = len(left)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            if not is_full(error):
                raise
        return count


def forgiving(descriptor: int) -> TextIO:
    """A stream for what people may read: a line for which the log has no room must not end the work."""
    return io.TextIOWrapper(_Forgiving(descriptor, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)

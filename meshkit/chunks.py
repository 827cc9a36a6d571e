"""Large blobs in chunks that are checked one by one: each chunk's sha256, in order, is the blob's chunk list.

The list is a blob itself. It says nothing that the blob's own digest does not: a blob is whole only when its own digest
fits as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from meshkit.errors import DataLossError

CHUNK = 8 * 1024 * 1024
"""Bytes of every chunk but the last."""
DIGEST_BYTES = 32
_READ_BYTES = 1024 * 1024


def count(size: int) -> int:
    """How many chunks a blob of `size` bytes has; one of no bytes has none."""
    return -(-size // CHUNK)


def span(number: int, size: int) -> tuple[int, int]:
    """Where chunk `number` of a blob of `size` bytes starts, and how many bytes it has."""
    start = number * CHUNK
    return start, min(CHUNK, size - start)


def covering(offset: int, length: int) -> range:
    """The chunks that bytes `offset` to `offset + length` lie in."""
    return range(offset // CHUNK, -(-(offset + length) // CHUNK))


def list_bytes(size: int) -> int:
    """Bytes of the chunk list of a blob of `size` bytes."""
    return count(size) * DIGEST_BYTES


def parse_list(content: bytes, size: int) -> tuple[bytes, ...]:
    """Each chunk's sha256. Raises DataLossError when this cannot be the list of a blob of `size` bytes."""
    if len(content) != list_bytes(size):
        raise DataLossError(
            f"a chunk list of {len(content)} bytes, and {size} bytes have one of {list_bytes(size)}",
            hint="push the version again under another number",
        )
    return tuple(content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES))


def fits(data: bytes | bytearray | memoryview, digest: bytes) -> bool:
    """Whether a chunk's content is what the list says."""
    return hashlib.sha256(data).digest() == digest


def digests_of(path: Path) -> tuple[str, bytes]:
    """A file's sha256 (64 lower-case hex digits), and its chunk list; no list for a file of one chunk. One read."""
    whole, chunk, left, digests = hashlib.sha256(), hashlib.sha256(), CHUNK, []
    with path.open("rb") as file:
        while data := file.read(min(_READ_BYTES, left)):
            whole.update(data)
            chunk.update(data)
            left -= len(data)
            if not left:
                digests.append(chunk.digest())
                chunk, left = hashlib.sha256(), CHUNK
    if left < CHUNK:
        digests.append(chunk.digest())
    return whole.hexdigest(), b"".join(digests) if len(digests) > 1 else b""

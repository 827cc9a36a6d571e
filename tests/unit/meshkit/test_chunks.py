"""Chunks of large blobs: spans, lists, and what one read of a file gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import chunks
from meshkit.chunks import CHUNK
from meshkit.errors import DataLossError


@given(st.integers(0, 40 * CHUNK))
def test_spans_cover_a_blob_once(size: int) -> None:
    spans = [chunks.span(number, size) for number in range(chunks.count(size))]
    assert sum(length for _, length in spans) == size
    assert [start for start, _ in spans] == [number * CHUNK for number in range(len(spans))]
    assert all(length > 0 for _, length in spans)


@given(st.integers(0, 20 * CHUNK), st.integers(1, 20 * CHUNK))
def test_the_chunks_that_cover_some_bytes(offset: int, length: int) -> None:
    found = chunks.covering(offset, length)
    assert found[0] * CHUNK <= offset
    assert offset + length <= (found[-1] + 1) * CHUNK
    assert len(found) <= 2 + length // CHUNK


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5])
def test_one_read_gives_both_digests(tmp_path: Path, size: int) -> None:
    content = hashlib.sha256(b"seed").digest() * (size // 32 + 1)
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    digest, listed = chunks.digests_of(path)
    assert digest == hashlib.sha256(content[:size]).hexdigest()
    each = [hashlib.sha256(content[:size][start : start + CHUNK]).digest() for start in range(0, size, CHUNK)]
    assert listed == (b"".join(each) if size > CHUNK else b"")
    if listed:
        assert list(chunks.parse_list(listed, size)) == each
        assert chunks.fits(content[:CHUNK], each[0])
        assert not chunks.fits(content[1 : CHUNK + 1] + b"x", each[0])


@pytest.mark.parametrize("length", [0, 31, 32, 65, 96])
def test_a_list_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(DataLossError, match=f"a chunk list of {length} bytes"):
        chunks.parse_list(bytes(length), 2 * CHUNK)

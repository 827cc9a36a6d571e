"""A blob on its way in chunks: what counts, what is served, and what a restart believes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import chunks
from meshkit.errors import DataLossError, NotFoundError
from node_agent.partial import Partial
from node_agent.store import ModelStore

SMALL = 4096
"""Bytes of a chunk in these tests."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", SMALL)


class Blob:
    """Content and what is said of it."""

    def __init__(self, size: int) -> None:
        self.content = hashlib.sha256(str(size).encode()).digest() * (size // 32 + 1)
        self.content = bytes((byte + start // SMALL) % 256 for start, byte in enumerate(self.content[:size]))
        self.size = size
        self.digest = hashlib.sha256(self.content).hexdigest()
        self.digests = [hashlib.sha256(self.chunk(number)).digest() for number in range(chunks.count(size))]

    def chunk(self, number: int) -> bytes:
        start, length = chunks.span(number, self.size)
        return self.content[start : start + length]

    def in_store(self, store: ModelStore) -> Partial:
        return store.coming(self.digest, self.size, self.digests)


@pytest.fixture
def blob() -> Blob:
    return Blob(3 * SMALL + 100)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path, 1 << 20)


def test_chunks_in_any_order_make_the_whole(store: ModelStore, blob: Blob) -> None:
    partial = blob.in_store(store)
    for number in (3, 0, 2, 1):
        assert number in partial.missing()
        partial.write(number, blob.chunk(number))
    assert partial.held_bytes() == blob.size
    assert store.commit_chunks(blob.digest)
    assert store.path(blob.digest).read_bytes() == blob.content
    assert store.held() == {blob.digest}
    assert store.used_bytes() == blob.size


def test_a_chunk_that_is_not_what_the_list_says_is_refused(store: ModelStore, blob: Blob) -> None:
    partial = blob.in_store(store)
    for wrong in (blob.chunk(1), blob.chunk(0)[:-1], blob.chunk(0) + b"x", b""):
        with pytest.raises(DataLossError, match="chunk 0 came with other content"):
            partial.write(0, wrong)
    assert len(partial) == 0


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)), st.integers(0, SMALL - 1))
def test_a_restart_believes_only_what_it_looked_at(
    tmp_path_factory: pytest.TempPathFactory, written: set[int], damaged: set[int], where: int
) -> None:
    folder, made = tmp_path_factory.mktemp("partial"), Blob(6 * SMALL)
    partial = Partial(folder / "blob", made.size, made.digests)
    for number in written:
        partial.write(number, made.chunk(number))
    with (folder / "blob").open("r+b") as file:
        for number in damaged:
            file.seek(number * SMALL + where)
            file.write(bytes([made.chunk(number)[where] ^ 1]))
    again = Partial(folder / "blob", made.size, made.digests)
    assert again.held() == written - damaged
    assert again.missing() == sorted(set(range(6)) - (written - damaged))


def test_only_verified_bytes_are_given(store: ModelStore, blob: Blob) -> None:
    partial = blob.in_store(store)
    partial.write(1, blob.chunk(1))
    partial.write(3, blob.chunk(3))
    with store.open_range(blob.digest, SMALL + 5, 50) as file:
        assert file.read(50) == blob.content[SMALL + 5 : SMALL + 55]
    with store.open_range(blob.digest, 3 * SMALL, 0) as file:
        assert file.read() == blob.content[3 * SMALL :]
    for offset, length in ((0, 1), (SMALL - 1, 2), (SMALL, SMALL + 1), (SMALL, 0), (3 * SMALL, 101), (1 << 40, 1)):
        with pytest.raises(NotFoundError):
            store.open_range(blob.digest, offset, length)


def test_a_chunk_that_rots_before_the_end_is_fetched_again(store: ModelStore, blob: Blob) -> None:
    partial = blob.in_store(store)
    for number in range(4):
        partial.write(number, blob.chunk(number))
    with partial.path.open("r+b") as file:
        file.write(b"rot")
    assert not store.commit_chunks(blob.digest)
    assert partial.missing() == [0]
    partial.write(0, blob.chunk(0))
    assert store.commit_chunks(blob.digest)
    assert store.verify(blob.digest)


def test_a_list_of_another_blob_is_found_out_at_the_end(store: ModelStore, blob: Blob) -> None:
    partial = store.coming("0" * 64, blob.size, blob.digests)
    for number in range(4):
        partial.write(number, blob.chunk(number))
    with pytest.raises(DataLossError, match="came with other content"):
        store.commit_chunks("0" * 64)
    assert (store.held(), store.used_bytes()) == (frozenset(), 0)


def test_only_what_came_takes_room(tmp_path: Path) -> None:
    store, blob = ModelStore(tmp_path, 3 * SMALL + 200), Blob(3 * SMALL + 100)
    with store.reserved(blob.digest, blob.size, ()):
        blob.in_store(store).write(2, blob.chunk(2))
        assert store.received(blob.digest) == store.used_bytes() == SMALL
    store = ModelStore(tmp_path, 3 * SMALL + 200)
    with store.reserved(blob.digest, blob.size, ()):
        assert blob.in_store(store).held() == {2}, "the rest still fits"
    assert store.make_room(3 * SMALL, keep=()) == [blob.digest], "given up, it goes first"
    assert store.used_bytes() == 0
    with pytest.raises(NotFoundError):
        store.open_range(blob.digest, 2 * SMALL, 5)


def test_a_hole_is_no_chunk_of_zeros(tmp_path: Path) -> None:
    digests = [hashlib.sha256(bytes(SMALL)).digest()] * 3
    partial = Partial(tmp_path / "zeros", 3 * SMALL, digests)
    assert partial.missing() == [0, 1, 2]
    partial.write(1, bytes(SMALL))
    assert partial.path.stat().st_size == 3 * SMALL
    assert Partial(tmp_path / "zeros", 3 * SMALL, digests).held() == {1}


def test_a_wrong_list_of_chunks_does_not_stand_in_the_way_of_the_right_one(store: ModelStore, blob: Blob) -> None:
    wrong = store.coming(blob.digest, blob.size, [bytes(32), *blob.digests[1:]])
    with pytest.raises(DataLossError):
        wrong.write(0, blob.chunk(0))
    wrong.write(1, blob.chunk(1))
    right = blob.in_store(store)
    assert right.held() == {1}, "what came is kept"
    right.write(0, blob.chunk(0))
    assert blob.in_store(store) is right


def test_an_offset_beyond_the_end_gives_nothing(store: ModelStore, blob: Blob) -> None:
    partial = blob.in_store(store)
    for number in range(4):
        partial.write(number, blob.chunk(number))
    assert store.commit_chunks(blob.digest)
    for offset in (blob.size, blob.size + 1, (1 << 64) - 1):
        with store.open_range(blob.digest, offset, 0) as file:
            assert file.read() == b""
        assert list(store.read(blob.digest, offset)) == []

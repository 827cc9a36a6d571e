from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import ExhaustedError, InvalidInputError
from node_agent.store import ModelStore


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put(store: ModelStore, content: bytes, used_at: float | None = None) -> str:
    digest = _digest(content)
    if content:
        store.append(digest, content)
    path = store.commit(digest)
    if used_at is not None:
        os.utime(path, (used_at, path.stat().st_mtime))
    return digest


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path, limit_bytes=100)


def test_least_recently_used_goes_first_and_assigned_stays(store: ModelStore) -> None:
    old, middle, new = (_put(store, bytes([65 + i]) * 30, used_at=1000.0 + i) for i in range(3))
    assert store.make_room(40, keep={old}) == [middle]
    assert store.held() == {old, new}
    assert store.used_bytes() == 60


def test_using_a_blob_keeps_it(store: ModelStore) -> None:
    old, new = (_put(store, bytes([65 + i]) * 40, used_at=1000.0 + i) for i in range(2))
    modified = store.path(old).stat().st_mtime
    assert store.verify(old)
    assert store.make_room(50, keep=()) == [new]
    assert store.path(old).stat().st_mtime == modified, "Triton reloads what was modified"


def test_what_cannot_fit_evicts_nothing(store: ModelStore) -> None:
    kept, free = _put(store, b"k" * 60), _put(store, b"f" * 20)
    with pytest.raises(ExhaustedError, match="41 more bytes"):
        store.make_room(41, keep={kept})
    assert store.held() == {kept, free}


def test_room_that_is_promised_is_not_given_twice(store: ModelStore) -> None:
    first, second = _digest(b"1"), _digest(b"2")
    with store.reserved(first, 70, keep=()):
        with pytest.raises(ExhaustedError), store.reserved(second, 40, keep=()):
            pass
        with store.reserved(second, 30, keep=()):
            pass
    with store.reserved(second, 40, keep=()):
        pass


def test_abandoned_downloads_go_before_blobs(store: ModelStore) -> None:
    blob, partial = _put(store, b"b" * 40, used_at=1.0), _digest(b"never finished")
    store.append(partial, b"p" * 40)
    assert store.make_room(50, keep=()) == [partial]
    assert store.held() == {blob}


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "/"])
def test_only_digests_are_names(store: ModelStore, digest: str) -> None:
    for action in (store.path, store.received, store.commit, store.discard, store.verify):
        with pytest.raises(InvalidInputError, match="no sha256 digest"):
            action(digest)


@given(sizes=st.lists(st.integers(0, 50), max_size=8), needed=st.integers(0, 120), kept=st.integers(0, 8))
def test_after_make_room_it_fits_or_nothing_was_lost(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], needed: int, kept: int
) -> None:
    store = ModelStore(tmp_path_factory.mktemp("store"), limit_bytes=100)
    digests = [_put(store, bytes([65 + number]) * size, used_at=float(number)) for number, size in enumerate(sizes)]
    keep = set(digests[:kept])
    before = store.held()
    try:
        store.make_room(needed, keep)
    except ExhaustedError:
        assert store.held() == before
        assert sum(store.path(digest).stat().st_size for digest in keep) + needed > 100
    else:
        assert store.used_bytes() + needed <= 100
        assert keep <= store.held()

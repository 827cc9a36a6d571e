"""The blob store: resumed, verified, and never wrong under its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.blobs import BlobStore
from meshkit.errors import DataLossError, ExhaustedError, InvalidInputError, NotFoundError


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 60))
def test_any_pieces_make_the_whole(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], offset: int) -> None:
    root = tmp_path_factory.mktemp("blobs")
    name = digest(b"".join(pieces))
    for piece in pieces:
        BlobStore(root).append(name, piece)  # as after a restart between any two pieces
    assert BlobStore(root).received(name) == len(b"".join(pieces))
    assert BlobStore(root).held() == frozenset()
    BlobStore(root).commit(name)
    store = BlobStore(root)
    assert b"".join(store.read(name, offset)) == b"".join(pieces)[offset:]
    assert store.held() == {name}
    assert store.verify(name)


def test_other_content_is_refused_and_forgotten(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.append("0" * 64, b"not that")
    with pytest.raises(DataLossError, match=digest(b"not that")):
        store.commit("0" * 64)
    assert store.received("0" * 64) == 0


def test_a_byte_flipped_on_disk_is_found_and_the_blob_forgotten(tmp_path: Path) -> None:
    store, name = BlobStore(tmp_path), digest(b"good")
    store.append(name, b"good")
    path = store.commit(name)
    path.chmod(0o644)
    path.write_bytes(b"g00d")
    assert not store.verify(name)
    assert (store.held(), store.received(name)) == (frozenset(), 0)
    with pytest.raises(NotFoundError):
        next(store.read(name, 0))


def test_path_tricks_are_refused(tmp_path: Path) -> None:
    for bad in ("../x", "", "A" * 64, "0" * 63):
        with pytest.raises(InvalidInputError, match="is no sha256 digest"):
            BlobStore(tmp_path).received(bad)


def test_discarding_forgets_whole_and_partial(tmp_path: Path) -> None:
    store, name = BlobStore(tmp_path), digest(b"")
    store.commit(name)
    store.append("0" * 64, b"x")
    for each in (name, "0" * 64, "1" * 64):
        store.discard(each)
        assert store.received(each) == 0
    assert store.held() == frozenset()


def test_a_full_disk_is_said_so() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    store = BlobStore.__new__(BlobStore)
    store._partial = full.parent
    store._blobs = full.parent
    with pytest.raises(ExhaustedError, match="no space left"):
        _append_to(store, full)


def _append_to(store: BlobStore, path: Path) -> None:
    """Appends as `append` does, to a file whose disk is always full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meshkit.blobs.checked", lambda digest: path.name)
        store.append("0" * 64, b"x" * 10)

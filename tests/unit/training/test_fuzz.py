"""Random bytes, and real files with changed bytes: an identification or InvalidInputError, soon, in little memory."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from tests.unit.training import makers
from training.identify import identify

MEMORY_BYTES = 256 << 20
STARTS = [
    b"", b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x80\x04", b"\x80\x02", b"\x08\x01", b"\x08\x08\x12", b"\x78\x9c",
    b"BZh9", b"\x1f\x8b\x08", b"(", b"c", b"\x40\0\0\0\0\0\0\0{",
]  # fmt: skip
MAKERS: dict[str, Callable[[Path], object]] = {
    "safetensors": makers.safetensors,
    "gguf": makers.gguf,
    "onnx": makers.onnx,
    "state_dict": makers.state_dict,
    "legacy": lambda path: makers.state_dict(path, legacy=True),
    "torchscript": makers.torchscript,
    "exported": makers.exported,
    "joblib": lambda path: makers.dumped(path, makers.forest()),
    "packed": lambda path: makers.dumped(path, makers.ridge(), 3),
    "pickle": lambda path: makers.pickled(path, makers.pipeline()),
    "protocol 0": lambda path: makers.pickled(path, makers.ridge(), 0),
    "saved_model": lambda path: path.write_bytes((makers.DATA / "saved_model" / "saved_model.pb").read_bytes()),
}


def check(path: Path) -> None:
    began, before = time.monotonic(), peak()
    with contextlib.suppress(InvalidInputError):
        identify(path)
    assert time.monotonic() - began < 20
    assert peak() - before < MEMORY_BYTES


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=600))
def test_random_bytes(folder: Path, start: bytes, rest: bytes) -> None:
    (folder / "file").write_bytes(start + rest)
    check(folder / "file")


@cache
def real(folder: Path, kind: str) -> bytes:
    path = folder / f"real {kind}"
    MAKERS[kind](path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", list(MAKERS))
def test_changed_bytes(folder: Path, kind: str) -> None:
    whole = real(folder, kind)

    @settings(max_examples=40, database=None)
    @given(data=st.data())
    def change(data: st.DataObject) -> None:
        content = bytearray(whole)
        # Most of what matters is at a file's beginning, or at a zip's end.
        places = st.one_of(
            st.integers(0, len(content) - 1), st.integers(0, min(400, len(content) - 1)),
            st.integers(max(0, len(content) - 900), len(content) - 1),
        )  # fmt: skip
        for at in data.draw(st.lists(places, min_size=1, max_size=6)):
            content[at] = data.draw(st.integers(0, 255))
        (folder / kind).write_bytes(
            bytes(content[: data.draw(st.sampled_from([len(content)] * 3 + [len(content) // 2]))])
        )
        check(folder / kind)

    change()


@settings(max_examples=60)
@given(at=st.integers(0, 595), value=st.integers(0, 255))
def test_the_variables_index(folder: Path, at: int, value: int) -> None:
    source = makers.DATA / "saved_model"
    (folder / "saved" / "variables").mkdir(parents=True, exist_ok=True)
    (folder / "saved" / "saved_model.pb").write_bytes((source / "saved_model.pb").read_bytes())
    content = bytearray((source / "variables" / "variables.index").read_bytes())
    content[at] = value
    (folder / "saved" / "variables" / "variables.index").write_bytes(bytes(content))
    check(folder / "saved")


@pytest.mark.parametrize("at", [9, 40, 96, 600, 2048, 5000])
def test_hdf5_in_its_own_process(tmp_path: Path, at: int) -> None:
    content = bytearray((makers.DATA / "tiny.h5").read_bytes())
    content[at : at + 4] = b"\xff\xfe\xfd\xfc"
    (tmp_path / "file").write_bytes(bytes(content))
    check(tmp_path / "file")

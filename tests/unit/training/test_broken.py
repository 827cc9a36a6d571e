"""Files that are cut, contradict themselves or are made to exhaust a reader: an error that names it, soon."""

from __future__ import annotations

import json
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from meshkit.errors import InvalidInputError
from tests.unit.training import makers
from training.identify import identify


def refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(InvalidInputError) as caught:
        identify(path)
    assert time.monotonic() - began < 20
    assert caught.value.reason == "BROKEN_MODEL"
    return caught.value.message


def header(content: Any, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(begin: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<Q", 4000) + b'{"a":1}', "4000 bytes"),
        (struct.pack("<Q", 90 << 20) + b"{" + bytes(91 << 20), "33554432 are read"),
        (header({"a": one(0, 8, [2]), "b": one(4, 12, [2])}, bytes(12)), "broken"),
        (header({"a": one(0, 8, [3])}, bytes(8)), "broken"),
        (header({"a": one(0, 8, [-2])}, bytes(8)), "broken"),
        (header({"a": one(0, 8, [2])}, bytes(4)), "broken"),
        (header({"a": one(0, 8, [1 << 40, 1 << 40])}, bytes(8)), "broken"),
        (struct.pack("<Q", 9 << 10) + b"{" + b"[" * (9 << 10), "broken"),
    ],
    ids=["header beyond the file", "header too long", "overlap", "size", "negative", "cut", "huge", "nesting"],
)
def test_safetensors(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(tmp_path / "file", content)


GGUF = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GGUF + struct.pack("<QQ", 1 << 60, 0), "tensors"),
        (GGUF + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62), "a text of"),
        (GGUF + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 61), "reaches beyond"),
        (GGUF + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 61), "a list of"),
        (GGUF + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 1 << 50, 0, 0), "ends at byte"),
        (GGUF + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 1 << 30), "dimensions"),
        (b"GGUF" + struct.pack(">I", 3), "version"),
    ],
)
def test_gguf(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(tmp_path / "file", content)


def test_gguf_tensors_that_overlap(tmp_path: Path) -> None:
    content = bytearray(makers.gguf(tmp_path / "file").read_bytes())
    at = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16 + 4
    content[at : at + 8] = bytes(8)
    assert "overlap" in refused(tmp_path / "file", bytes(content))


@pytest.mark.parametrize(
    "make", [makers.safetensors, makers.gguf, makers.state_dict, makers.torchscript, makers.exported]
)
def test_cut_short(tmp_path: Path, make: Any) -> None:
    content = make(tmp_path / "file").read_bytes()
    for share in (0.3, 0.6, 0.97):
        refused(tmp_path / "file", content[: int(len(content) * share)])


@pytest.mark.parametrize("name", ["tiny.h5", "tiny.keras"])
def test_keras_cut_short(tmp_path: Path, name: str) -> None:
    content = (makers.DATA / name).read_bytes()
    refused(tmp_path / "file", content[: len(content) // 2])


def test_formats_without_a_mark_cut_short(tmp_path: Path) -> None:
    content = makers.onnx(tmp_path / "file").read_bytes()
    assert "beyond" in refused(tmp_path / "file", content[:-20])
    content = (makers.DATA / "saved_model" / "saved_model.pb").read_bytes()
    assert "beyond" in refused(tmp_path / "file", content[:-2000])
    content = makers.state_dict(tmp_path / "file", legacy=True).read_bytes()
    assert "cut short" in refused(tmp_path / "file", content[:-20])


def test_a_zip_bomb_of_ratio(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/data.pkl", bytes(80 << 20))
    assert "83886080 bytes" in refused(tmp_path / "file")


def test_a_zip_bomb_of_overlaps(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("a/data.pkl", bytes(1000))
        archive.writestr("a/more", bytes(1000))
        archive.infolist()[1].header_offset = 0
    assert "overlaps" in refused(tmp_path / "file")


def test_a_compressed_bomb_that_begins_as_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.formats.pickle_file._BOMB_BYTES", 4 << 20)
    bomb = b"\x80\x04B" + struct.pack("<I", (1 << 31) - 1) + bytes(60 << 20)
    assert "bomb" in refused(tmp_path / "file", zlib.compress(bomb, 9))


def test_a_pickle_that_holds_itself_many_times(tmp_path: Path) -> None:
    """Ten lists, each with the one before it ten times: ten thousand million when written out."""
    layers = b"".join(b"(" + b"h%c" % at * 10 + b"lq%c" % (at + 1) for at in range(10))
    (tmp_path / "file").write_bytes(b"\x80\x02]q\x00" + layers + b".")
    began = time.monotonic()
    assert identify(tmp_path / "file").format == "unknown"
    assert time.monotonic() - began < 5


def test_a_pickle_nested_deeper_than_any_stack(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x80\x02)" + b"\x85" * 100_000 + b"}q\x00h\x00NsN\x86.")
    assert identify(tmp_path / "file").format == "unknown"


def test_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    path = makers.state_dict(tmp_path / "file", legacy=True)
    content = path.read_bytes().replace(b"K\x04K\x03K\x03K\x03t", b"K\x7fK\x03K\x03K\x03t")
    assert "reaches beyond its storage" in refused(path, content)

"""Files of samples in every form, damaged and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.inference.needs import without_torch
from training.data.builtin import SETS
from training.data.load import joined, load
from training.data.readers import read

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])


def _csv(path: Path) -> None:
    rows = [",".join([*(str(value) for value in x), str(y)]) for x, y in zip(X, Y, strict=True)]
    path.write_text("a,b,c,d,label\n" + "\n".join(rows) + "\n")


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"x": x.tolist(), "y": int(y)}) + "\n" for x, y in zip(X, Y, strict=True)))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "s.npz": lambda path: np.savez(path, y=Y, x=X),
    "c.npz": lambda path: np.savez_compressed(path, x=X, y=Y),
    "f.npz": lambda path: np.savez(path, x=np.asfortranarray(X), y=Y),
    "s.safetensors": lambda path: save_file({"y": Y, "x": X}, path),
    "s.csv": _csv,
    "s.jsonl": _jsonl,
}


@pytest.mark.parametrize("name", WRITERS)
def test_x_and_y_of_every_form(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    piece = read(tmp_path / name)
    assert list(piece.arrays) == ["x", "y"]
    np.testing.assert_array_equal(piece.arrays["x"], X)
    np.testing.assert_array_equal(piece.arrays["y"], Y)


def test_what_is_not_compressed_is_mapped(tmp_path: Path) -> None:
    for name in ("s.npz", "s.safetensors"):
        WRITERS[name](tmp_path / name)
        assert isinstance(read(tmp_path / name).arrays["x"], np.memmap)


@without_torch
def test_files_are_one_set_in_order_and_a_batch_is_x_and_y(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X[:2], y=Y[:2].astype(np.int32))
    np.savez(tmp_path / "b.npz", x=X[2:2], y=Y[2:2])
    np.savez(tmp_path / "c.npz", x=X[2:], y=Y[2:])
    samples = load(training_pb2.Data(path=str(tmp_path)), tmp_path)
    assert samples is not None
    assert len(samples) == 6
    assert samples.where(1) == "a.npz, sample 1"
    assert samples.where(2) == "c.npz, sample 0"
    x, y = samples.batch(np.array([5, 0, 3]))
    np.testing.assert_array_equal(x.numpy(), X[[5, 0, 3]])
    np.testing.assert_array_equal(y.numpy(), Y[[5, 0, 3]])


def test_arrays_in_two_files_are_paired_by_their_names(tmp_path: Path) -> None:
    np.save(tmp_path / "train-x.npy", X)
    np.save(tmp_path / "train-y.npy", Y)
    shards = [training_pb2.Shard(name=name) for name in ("train-x.npy", "train-y.npy")]
    samples = load(training_pb2.Data(shards=shards), tmp_path)
    assert samples is not None
    assert samples.names == ("x", "y")


def test_arrays_are_paired_within_their_folder(tmp_path: Path) -> None:
    for part in range(2):
        (tmp_path / f"part{part}").mkdir()
        np.save(tmp_path / f"part{part}" / "x.npy", X[3 * part : 3 * part + 3])
        np.save(tmp_path / f"part{part}" / "y.npy", np.full(3, part))
    samples = load(training_pb2.Data(path=str(tmp_path)), tmp_path)
    assert samples is not None
    assert samples.whole("y").tolist() == [0, 0, 0, 1, 1, 1]


def test_a_table_as_excel_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffy,a,b\n1,2,0.5\n0,4,1.5\n")
    (tmp_path / "b.csv").write_text("\ufeffy,a,b\n")  # no sample in it
    (tmp_path / "c.csv").write_text("\ufeff7,8,2\n")
    samples = joined([tmp_path / name for name in ("a.csv", "b.csv", "c.csv")])
    assert samples.whole("y").tolist() == [1, 0, 2]
    assert samples.whole("x").tolist() == [[2, 0.5], [4, 1.5], [7, 8]]


def test_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.jsonl").write_text('{"text": "wor"}\n{"text": "ld"}\n')
    assert bytes(joined([tmp_path / "a.txt", tmp_path / "b.jsonl"]).whole("text")) == b"hellowor\nld"


@pytest.mark.parametrize("name", SETS)
def test_sets_that_are_built_in(name: str) -> None:
    samples = load(training_pb2.Data(builtin=name), Path())
    assert samples is not None
    assert len(samples) > 100
    assert samples.whole("x").dtype == np.float32


def _pickled(path: Path) -> None:
    np.savez(path, x=np.array([object()] * 3, dtype=object), y=Y[:3])


def _cut(path: Path) -> None:
    WRITERS["s.safetensors"](path)
    path.write_bytes(path.read_bytes()[:-20])


def _tensor(dtype: str, shape: list[int], *offsets: int) -> Callable[[Path], Any]:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return lambda path: path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


def _damaged(path: Path) -> None:
    np.savez_compressed(path, x=X)
    content = bytearray(path.read_bytes())
    content[41:80] = b"\xff" * 39
    path.write_bytes(content)


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("pickled.npz", _pickled, r"pickled\.npz cannot be read: .*pickle"),
    ("cut.safetensors", _cut, r"cut\.safetensors cannot be read: it ends before its arrays do"),
    ("noise.npz", lambda path: path.write_bytes(b"noise"), r"noise\.npz cannot be read: File is not a zip file"),
    ("noise.npy", lambda path: path.write_bytes(b"noise"), r"noise\.npy cannot be read"),
    ("words.csv", lambda path: path.write_text("1,2\n3,four\n"), r"words\.csv cannot be read: row 2 .*3,four"),
    ("uneven.csv", lambda path: path.write_text("1,2\n3\n"), r"uneven\.csv cannot be read: row 2"),
    ("empty.csv", lambda path: path.touch(), r"empty\.csv cannot be read: it is empty"),
    ("short.csv", lambda path: path.write_text("a,b,y\n1,2\n"), r"short\.csv cannot be read: row 1 is not 3 numbers"),
    ("labels.csv", lambda path: path.write_text("1\n2\n"), r"labels\.csv cannot be read: it has one column"),
    ("words.npz", lambda path: np.savez(path, x=np.array(["a", "b"])), r"words\.npz: x holds <U1, not numbers"),
    ("damaged.npz", _damaged, r"damaged\.npz cannot be read: Error -3 while decompressing"),
    ("header.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00{(\n\n"), r"header\.npy cannot be read"),
    ("none.safetensors", _tensor("F32", [2, 2]), r"none\.safetensors cannot be read"),
    ("other.safetensors", _tensor("F32", [2, 2], 0, 4), r"other\.safetensors .*tensor x of shape \[2, 2\] is not what"),
    ("before.safetensors", _tensor("F32", [1], -4, 0), r"before\.safetensors cannot be read: tensor x"),
    ("vast.safetensors", _tensor("F32", [1 << 33, 1 << 33], 0, 16), r"vast\.safetensors cannot be read: tensor x"),
    ("digits.jsonl", lambda path: path.write_text(f'{{"x": [1{"0" * 400}]}}'), r"digits\.jsonl .*too large"),
    ("deep.jsonl", lambda path: path.write_text("[" * 100_000), r"deep\.jsonl cannot be read: .*recursion"),
    ("bad.jsonl", lambda path: path.write_text("{"), r"bad\.jsonl cannot be read"),
    ("list.jsonl", lambda path: path.write_text("[1]\n"), r"list\.jsonl cannot be read"),
    ("uneven.npz", lambda path: np.savez(path, x=X, y=Y[:2]), r"uneven\.npz: its arrays differ .*'x': 6, 'y': 2"),
    ("none.npz", lambda path: np.savez(path), r"none\.npz cannot be read: it holds no array"),
    ("model.bin", lambda path: path.touch(), r"model\.bin is of no known form"),
    ("empty.npz", lambda path: np.savez(path, x=X[:0], y=Y[:0]), r"no samples in empty\.npz"),
]


@pytest.mark.parametrize(("name", "write", "says"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], Any], says: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(InvalidInputError, match=says) as caught:
        joined([tmp_path / name])
    assert caught.value.reason == "BAD_DATA"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"gone\.npz cannot be read: .*No such file"):
        load(training_pb2.Data(shards=[training_pb2.Shard(name="gone.npz")]), tmp_path)
    with pytest.raises(InvalidInputError, match="/nowhere does not exist on this node"):
        load(training_pb2.Data(path="/nowhere"), tmp_path)
    with pytest.raises(InvalidInputError, match="holds no data files"):
        load(training_pb2.Data(path=str(tmp_path)), tmp_path)
    with pytest.raises(InvalidInputError, match="no built-in set 'mnist'"):
        load(training_pb2.Data(builtin="mnist"), tmp_path)


def test_files_of_several_forms_do_not_go_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez(tmp_path / "b.npz", x=X[:, :3], y=Y)
    with pytest.raises(InvalidInputError, match=r"b\.npz holds x \[3\], y \[\], where a\.npz holds x \[4\], y \[\]"):
        joined([tmp_path / "a.npz", tmp_path / "b.npz"])

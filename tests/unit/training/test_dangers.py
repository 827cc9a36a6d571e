"""Pickles that run code say which and where, however they are wrapped; nothing in them is ever run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch

from meshkit.errors import InvalidInputError
from tests.unit.training import makers
from training.formats import opcodes
from training.identify import dangers, identify


class Runs:
    """Runs a command when it is loaded."""

    def __init__(self, place: Path, function: Any = os.system) -> None:
        self.place, self.function = place, function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (f"touch {self.place}",)


@pytest.fixture
def trap(tmp_path: Path) -> Any:
    place = tmp_path / "sprung"
    yield Runs(place)
    assert not place.exists(), "identification ran what was in the file"


def why(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    return "; ".join(dangers(identify(path)))


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_named_with_its_place(tmp_path: Path, trap: Runs, protocol: int) -> None:
    content = pickle.dumps(trap, protocol)
    said = why(tmp_path / "file", content)
    offset = next(at for opcode, _, at in pickletools.genops(content) if "GLOBAL" in opcode.name)
    assert f"it calls on posix.system at byte {offset}: loading it runs commands" in said


@pytest.mark.parametrize("function", [eval, exec, subprocess.check_output, __import__, getattr, torch.load])
def test_other_ways_to_run_code(tmp_path: Path, function: Any) -> None:
    assert why(tmp_path / "file", pickle.dumps(Runs(tmp_path, function)))


def test_wrapped_in_state_dicts_estimators_and_dumps(tmp_path: Path, trap: Runs) -> None:
    forest = makers.ridge()
    forest.extra_ = trap
    torch.save({"weight": torch.zeros(3), "x": trap}, tmp_path / "new")
    torch.save({"weight": torch.zeros(3), "x": trap}, tmp_path / "old", _use_new_zipfile_serialization=False)
    joblib.dump(forest, tmp_path / "dump")
    joblib.dump(forest, tmp_path / "packed", compress=3)
    joblib.dump({"a": np.array([trap], object)}, tmp_path / "objects")
    (tmp_path / "gz").write_bytes(gzip.compress(pickle.dumps(trap)))
    for name in ("new", "old", "dump", "packed", "objects", "gz"):
        assert "posix.system" in why(tmp_path / name), name


def test_behind_a_program_of_torch_export(tmp_path: Path, trap: Runs) -> None:
    path = makers.exported(tmp_path / "file")
    evil = io.BytesIO()
    torch.save(((trap,), {}), evil)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "evil", "w") as changed:
        for member in archive.infolist():
            held = evil.getvalue() if "sample_inputs" in member.filename else archive.read(member)
            changed.writestr(member.filename, held)
    assert "posix.system" in why(tmp_path / "evil")


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'id'\ntR.",
        b"(S'id'\nios\nsystem\n.",
        b"(cos\nsystem\nS'id'\no.",
        b"cos\nsystem\n(S'id'\ntR broken off",
        b"I0x10\n0cos\nsystem\n(S'id'\ntR.",
        b"S'\\xe9'\n0cos\nsystem\n(S'id'\ntR.",
        b"\x80\x04\x82\x01)R.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        b"\x80\x02ccollections\nOrderedDict.__init__\n)R.",
        b"\x80\x04c_codecs\nencode\n\x8c\x02bf\x8c\x05rot13\x86R\x8c\x06system\x93\x8c\x02id\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    ],
    ids=[
        "protocol 0", "INST", "OBJ", "broken off after the call", "after a number in hex", "after a byte string",
        "extension code", "memo and pops", "attribute of a class", "a name made by a harmless call",
        "a state for a class", "a call of an object",
    ],
)  # fmt: skip
def test_tricks(tmp_path: Path, content: bytes) -> None:
    assert why(tmp_path / "file", content)


def zipped(path: Path, **records: bytes) -> Path:
    """An archive of torch; __ in a record's name stands for a dot."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"version": b"3", "byteorder": b"little", **records}.items():
            archive.writestr(f"a/{name.replace('__', '.')}", content)
    return path


def test_torch_finds_a_pickle_whatever_the_case_of_its_name(tmp_path: Path, trap: Runs) -> None:
    hostile, good = pickle.dumps(trap, 2), pickle.dumps({}, 2)
    assert "posix.system" in why(zipped(tmp_path / "one", DATA__PKL=hostile))
    for records in ({"DATA__PKL": hostile, "data__pkl": good}, {"data__pkl": good, "Data__pkl": hostile}):
        with pytest.raises(InvalidInputError, match="same name twice"):
            identify(zipped(tmp_path / "two", **records))


def test_records_in_several_directories_are_no_archive_of_torch(tmp_path: Path, trap: Runs) -> None:
    path = zipped(tmp_path / "file", data__pkl=pickle.dumps(trap, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(InvalidInputError, match="several directories"):
        identify(path)


@pytest.mark.parametrize("name", ["sklearn.datasets._base\nPath", "sklearn.utils._joblib\nMemory"])
def test_what_scikit_learn_imports_from_elsewhere_is_no_estimator(tmp_path: Path, name: str) -> None:
    assert "not known to be harmless" in why(tmp_path / "file", f"c{name}\n(X\1\0\0\0atR.".encode())


def test_hidden_in_what_joblib_takes_for_an_array(tmp_path: Path, trap: Runs) -> None:
    """joblib.load sees numbers there; pickle.load of the same file sees opcodes."""
    joblib.dump(np.frombuffer(pickle.dumps(trap, 0).ljust(1024, b"\0"), np.uint8), tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    start = content.index(b"cposix")
    length = next(at for at in range(start - 1, 0, -1) if content[at] == start - 1 - at)
    # The padding's length, 48, is the opcode POP, and the padding may be any opcodes.
    (tmp_path / "file").write_bytes(content[:length] + b"0" + b"N" * 48 + content[start:])
    assert joblib.load(tmp_path / "file").size == 1024
    assert "posix.system" in why(tmp_path / "file")


def test_longer_than_is_looked_at(tmp_path: Path, trap: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcodes, "MOST_OPCODES", 1000)
    for protocol in (0, 4):
        said = why(tmp_path / "file", pickle.dumps([*range(2000), trap], protocol))
        assert "more than 1000 opcodes" in said


def test_a_lambda_layer_is_code(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr(
            "config.json", '{"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda"}]}}'
        )
    assert "Lambda" in why(tmp_path / "file")


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(a=np.zeros(3)), {"a": {1, 2}, "b": b"x", "c": 1.5, "d": (None, True)}, np.arange(5),
        np.float32(1), torch.Size([1, 2]), [slice(1, 2), complex(1, 2), bytearray(b"x")],
        np.random.RandomState(0), np.ma.masked_equal([1, 2], 2),  # type: ignore[no-untyped-call]
    ],
)  # fmt: skip
def test_plain_data_is_harmless(tmp_path: Path, value: Any) -> None:
    for protocol in range(2, 6):
        assert not why(tmp_path / "file", pickle.dumps(value, protocol))


def test_a_broken_pickle_without_danger_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"a": 1, "b": "text"})[:-4])
    with pytest.raises(InvalidInputError, match="broken"):
        identify(tmp_path / "file")

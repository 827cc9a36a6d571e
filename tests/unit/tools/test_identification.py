"""`aimesh models identify`, and what a push makes of it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimesh.registry.v1 import registry_pb2
from inference.packaging import package
from meshkit.errors import InvalidInputError
from tests.unit.training import makers
from tools.cli.identification import facts, look_before, short_count, summary, tell
from tools.cli.main import app


def test_the_command_for_people_and_programs(tmp_path: Path) -> None:
    path = makers.onnx(tmp_path / "file")
    text = CliRunner().invoke(app, ["models", "identify", str(path)])
    assert text.exit_code == 0
    assert text.stdout.startswith("onnx, small (linear), 15 parameters, FP32")
    answer = CliRunner().invoke(app, ["models", "identify", str(path), "--json"])
    assert json.loads(answer.stdout)["signature"]["inputs"][0] == {
        "name": "x", "data_type": "FP32", "shape": [-1, 4], "optional": False,
    }  # fmt: skip


def test_a_push_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = makers.onnx(tmp_path / "model.onnx")
    with package(path, "m", "1.0.0") as packed:
        tell(packed, look_before(path, allow_pickle=False), allow_pickle=False)
        assert packed.version.identification.parameters == 15
        assert facts(packed.version.identification) == ["found    onnx, small (linear), 15 parameters, FP32"]
    assert "Identified as onnx, small (linear)" in capsys.readouterr().err


def test_a_dangerous_pickle_is_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(eval))
    with pytest.raises(InvalidInputError, match=r"builtins\.eval at byte") as caught:
        look_before(tmp_path / "file", allow_pickle=False)
    assert caught.value.reason == "PICKLE_DANGEROUS"
    assert look_before(tmp_path / "file", allow_pickle=True) is not None
    assert look_before(tmp_path / "gone", allow_pickle=False) is None


def test_short_texts() -> None:
    assert [short_count(count) for count in (7, 1500, 134_515_008, 7_240_000_000, 2 * 10**12)] == [
        "7", "1.5 k", "134.5 M", "7.2 B", "2.0 T",
    ]  # fmt: skip
    assert summary(registry_pb2.Identification(format="text")) == "text"
    assert facts(registry_pb2.Identification()) == []

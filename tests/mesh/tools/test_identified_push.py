"""A push records what the files were found to be, and refuses pickles that can run code unless told otherwise."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from tests.mesh.tools.meshes import CONFIG, MODEL, Aimesh
from tests.unit.training import makers
from tools.cli import main as cli

INVALID = 2


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def estimator(place: Path) -> Path:
    (place / "1").mkdir(parents=True)
    (place / "config.pbtxt").write_text(CONFIG)
    (place / "1" / "model.py").write_text(MODEL)
    makers.dumped(place / "1" / "estimator", makers.pipeline())
    return place


def test_what_is_pushed_is_identified(
    mesh: Aimesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh.run("up", "--detach")
    monkeypatch.setenv("AIMESH_STATE_DIR", str(mesh.state_dir))
    place = estimator(tmp_path / "model")

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["aimesh", "models", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert (caught.value.code or 0) == code
        return capsys.readouterr()

    def push(source: Path, version: str, *more: str, code: int = 0) -> str:
        return run("push", str(source), "--name", "m", "--version", version, *more, code=code)[1]

    assert "Identified as sklearn of scikit-learn, Pipeline (linear)" in push(place, "1.0.0")
    shown = json.loads(run("show", "m:1.0.0", "--json")[0])["identification"]
    assert (shown["format"], shown["architecture"], shown["parameters"]) == ("sklearn", "Pipeline", 31)

    (place / "1" / "cache").write_bytes(pickle.dumps(Runs()))
    assert "posix.system" in push(place, "1.0.1", code=INVALID)
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "model")
    assert "posix.system" in push(Path(archive), "1.0.1", code=INVALID)
    push(Path(archive), "1.0.1", "--allow-pickle")
    assert "dangerous: model/1/cache: it calls on posix.system at byte " in run("show", "m:1.0.1")[0]

"""Versions, aliases, tags, compatibility and prompts through the command line, on a mesh that is up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.tools.meshes import CONFIG, MODEL, Aimesh, until
from tools.cli import main as cli

INVALID, NOT_FOUND, PRECONDITION = 2, 3, 5


Run = Callable[..., str]


@pytest.fixture
def run(mesh: Aimesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands in this process: what they print, with errors."""
    monkeypatch.setenv("AIMESH_STATE_DIR", str(mesh.state_dir))

    def call(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["aimesh", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert (caught.value.code or 0) == code, f"{arguments}: {caught.value.code}\n{out}\n{err}"
        return f"{out}{err}" if code else out

    mesh.run("up", "--detach")
    return call


def push(run: Run, place: Path, version: str, *more: str, config: str = CONFIG, code: int = 0) -> str:
    (place / version / "1").mkdir(parents=True)
    (place / version / "config.pbtxt").write_text(config)
    (place / version / "1" / "model.py").write_text(f"{MODEL}# {version}\n")
    return run("models", "push", str(place / version), "--name", "adder", "--version", version, *more, code=code)


def test_a_deployment_follows_an_alias_and_prompts_are_filled(mesh: Aimesh, run: Run, tmp_path: Path) -> None:
    def shown_json(*arguments: str) -> Any:
        return json.loads(run(*arguments, "--json"))

    push(
        run,
        tmp_path,
        "1.0.0",
        "--changelog",
        "First.",
        "--detail",
        "commit=abc",
        "--tag",
        "stage=good",
        "--alias",
        "champion",
    )
    push(run, tmp_path, "1.1.0", "--changelog", "Faster.", "--source", "job 7", "--replaces", "1.0.0")
    said = push(run, tmp_path, "1.2.0", config=CONFIG.replace('"x"', '"z"'), code=PRECONDITION)
    assert "input 'x' is gone; input 'z' is new" in said
    shown = shown_json("models", "show", "adder@champion")
    assert (shown["version"], shown["changelog"], shown["aliases"]) == ("1.0.0", "First.", ["champion"])
    assert (shown["tags"], shown["provenance"]["details"]) == ({"stage": "good"}, {"commit": "abc"})
    assert (shown["provenance"]["source"], shown["provenance"]["pushed_by"]) == ("1.0.0", "anyone")
    newest, oldest = shown_json("models", "history", "adder")
    assert (newest["version"], newest["replaces"], newest["provenance"]["source"]) == ("1.1.0", "1.0.0", "job 7")
    assert oldest["tags"] == {"stage": "good"}
    for words in (("show", "adder@champion"), ("history", "adder")):
        told = run("models", *words)
        assert all(word in told for word in ("First.", "stage=good", "champion"))

    # What was recorded unsigned is signed by being pushed again.
    key = tmp_path / "release.key"
    run("trust", "keygen", str(key))
    run("trust", "add", "release", f"{key}.pub")
    again = ("models", "push", str(tmp_path / "1.1.0"), "--name", "adder", "--version", "1.1.0", "--replaces", "1.0.0")
    said = run(*again, "--sign-key", str(key), "--tag", "no good=1", code=INVALID)
    assert "adder:1.1.0 is recorded. Its tags and aliases are not, or not all" in said
    assert len(shown_json("models", "show", "adder:1.1.0")["signatures"]) == 1

    # Following, there and back; both answer.
    run("deploy", "adder@champion")
    assert mesh.adds()
    assert "before: 1.0.0" in run("models", "alias", "adder", "champion", "1.1.0")
    until(lambda: serving(run) == {"1.1.0"})
    assert mesh.adds()
    run("models", "alias", "adder", "champion", "1.0.0")
    until(lambda: serving(run) == {"1.0.0"})
    run("models", "rm", "adder:1.0.0", code=PRECONDITION)
    run("models", "alias", "adder", "champion", "--rm", code=PRECONDITION)
    run("models", "alias", "adder", "champion", code=INVALID)
    run("deploy", "adder@nobody", code=NOT_FOUND)
    run("deploy", "adder:1.0.0")
    run("models", "alias", "adder", "champion", "--rm")
    assert "stage=tested" in run("models", "tag", "adder:1.0.0", "stage=tested", "new=1")
    run("models", "tag", "adder:1.0.0", "new-")
    assert shown_json("models", "show", "adder:1.0.0")["tags"] == {"stage": "tested"}
    assert "✓" in run("models", "compat", "adder")
    [node] = shown_json("models", "compat", "adder:1.0.0")["nodes"]
    assert (node["compatible"], node["reasons"]) == (True, [])

    # Prompts: one name space with models, and no deployment.
    text = tmp_path / "greeting.txt"
    text.write_text("Dear {{ user }}, it is {{ day }}.")
    run("prompts", "push", str(text), "--name", "greeting", "--version", "1.0.0", "--alias", "current")
    filled = run("prompts", "get", "greeting@current", "--var", "user=Ada", "--var", "day=Monday")
    assert filled == "Dear Ada, it is Monday.\n"
    assert run("prompts", "get", "greeting", "--raw") == text.read_text() + "\n"
    assert "day" in run("prompts", "get", "greeting", "--var", "user=Ada", code=INVALID)
    assert shown_json("prompts", "show", "greeting")["places"] == ["user", "day"]
    assert [version["name"] for version in shown_json("models", "list")] == ["adder", "adder"]
    assert [version["name"] for version in shown_json("prompts", "list")] == ["greeting"]
    assert "greeting" in run("prompts", "list")
    run("prompts", "show", "adder", code=NOT_FOUND)
    assert "prompt" in run("deploy", "greeting", code=PRECONDITION)


def serving(run: Run) -> set[str]:
    """The versions of which a replica answers, once nothing else is assigned."""
    status = json.loads(run("status", "--json"))
    [node] = status["nodes"]
    return {model["version"] for model in node["models"] if model["state"] == "READY"}

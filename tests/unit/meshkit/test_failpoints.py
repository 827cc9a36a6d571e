"""Failpoints: every one is used, what is armed acts, what is not costs nothing."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshkit import failpoints
from meshkit.errors import InvalidInputError, UnavailableError
from meshkit.failpoints import EXIT_STATUS, FAILPOINTS, VARIABLE, Action, Armed, parse

ROOT = Path(__file__).parents[3]
ROOMS = ("meshkit", "node_agent", "coordinator", "inference", "training", "tools")


def used() -> list[str]:
    """The name in each call of `failpoint` in the code; a call without a plain name fails the test."""
    names = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "failpoint(" in text else ():
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                    assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
                    names.append(str(node.args[0].value))
    return names


def test_each_name_is_used_at_one_place_and_nothing_else_is() -> None:
    assert sorted(used()) == sorted(FAILPOINTS)


def test_not_armed_it_is_a_function_that_does_nothing() -> None:
    assert VARIABLE not in os.environ
    assert failpoints.failpoint is failpoints._unarmed


def test_actions_are_read() -> None:
    text = "election.won=exit; model.loaded=sleep:0.5#2;blob.append=nospace;"
    assert parse(text) == {
        "election.won": Action("exit"),
        "model.loaded": Action("sleep", seconds=0.5, most=2),
        "blob.append": Action("nospace"),
    }


@pytest.mark.parametrize(
    ("text", "names"),
    [("election.wun=exit", "election.won"), ("election.won=explode", "sleep:SECONDS"), ("election.won=exit#0", "#N")],
)
def test_what_is_wrong_is_named_with_what_is_known(text: str, names: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(text)
    assert text.partition("=")[0] in caught.value.message
    assert names in caught.value.hint


def test_errors_are_raised_as_often_as_asked_for() -> None:
    armed = Armed("blob.append=nospace#1;placement.decided=error")
    with pytest.raises(OSError, match="failpoint") as full:
        armed("blob.append")
    assert full.value.errno == errno.ENOSPC
    armed("blob.append")
    armed("election.won")
    for _ in range(3):
        with pytest.raises(UnavailableError, match=r"placement\.decided"):
            armed("placement.decided")


def test_a_file_arms_a_process_that_runs_and_remembers_hits(tmp_path: Path) -> None:
    file = tmp_path / "armed"
    armed = Armed(f"@{file}")
    armed("election.won")
    file.write_text("election.won=error")
    with pytest.raises(UnavailableError):
        armed("election.won")
    file.write_text("")
    armed("election.won")
    assert (tmp_path / "armed.hits").read_text() == "election.won\n"


def test_exit_ends_the_process_on_the_spot() -> None:
    code = "import atexit; atexit.register(print, 1)\nfrom meshkit.failpoints import failpoint as f\nf('model.loaded')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, VARIABLE: "model.loaded=exit"},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (EXIT_STATUS, b"")

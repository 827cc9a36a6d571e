from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from meshkit.errors import LEAVES, AimeshError, NotFoundError, UnavailableError
from tools.cli import main as cli
from tools.cli.environment import export_lines
from tools.cli.main import app
from tools.cli.options import parse_pairs
from tools.cli.output import human_bytes, report_error
from tools.cli.plain import enum_name
from tools.cli.target import Mesh
from tools.local.groups import find_error
from tools.local.layout import Layout
from tools.local.record import MeshRecord

DOCS = Path(__file__).parents[3] / "docs" / "operations" / "exit-codes.md"


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by its full name. typer carries a click of its own, whose classes are not to be named."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = commands(typer.main.get_command(app))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `aimesh ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["aimesh", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(autouse=True)
def _no_mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIMESH_STATE_DIR", str(tmp_path / "nowhere"))
    monkeypatch.delenv("AIMESH_COORDINATORS", raising=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    text = COMMANDS[name].help or ""
    assert re.search(rf"Example: .*aimesh {name}", text), text
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{name} {parameter.name}"


READING = ("status", "doctor", "models list", "models show", "infer", "chat", "embed")


@pytest.mark.parametrize("name", READING)
def test_every_reading_command_has_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


def test_no_mesh_is_one_line_and_a_hint(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "status") == UnavailableError.exit_code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: no mesh runs in ")
    assert "aimesh up" in err
    assert "Traceback" not in err


def test_errors_are_json_when_asked_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "models", "list", "--json") == UnavailableError.exit_code
    error = json.loads(capfd.readouterr().out)["error"]
    assert set(error) == {"reason", "message", "hint"}
    assert error["reason"] == "MESH_NOT_RUNNING"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["status", "--jsn"], ["chat"], ["up", "--nodes", "0"]])
def test_wrong_usage_exits_2(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_down_where_nothing_ever_ran_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "down") == 0


@pytest.mark.parametrize("role", ["agent", "coordinator", "gateway"])
@pytest.mark.parametrize("text", ["[{role}]\ndata_dri = '/x'\n", "[{role}s]\n", "not toml"])
def test_a_misspelt_configuration_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, role: str, text: str
) -> None:
    path = tmp_path / "aimesh.toml"
    path.write_text(text.format(role=role))
    assert run(monkeypatch, role, "--config", str(path)) == 2
    err = capfd.readouterr().err
    assert str(path) in err.replace("\n", "")
    assert "data_dri" not in text or "data_dir" in err


def test_the_exit_codes_are_documented() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))
    assert rows == {str(leaf.exit_code): leaf.__name__ for leaf in LEAVES}
    for leaf in LEAVES:
        assert f"`{leaf.code.name}`" in DOCS.read_text()


def test_an_error_in_task_groups_is_found_unless_something_else_is_in_there() -> None:
    error = NotFoundError("x")
    assert find_error(BaseExceptionGroup("", [BaseExceptionGroup("", [error])])) is error
    assert find_error(BaseExceptionGroup("", [error, ValueError()])) is None


@pytest.mark.parametrize("leaf", LEAVES)
def test_each_error_exits_with_its_own_code(leaf: type[AimeshError]) -> None:
    assert report_error(leaf("x", hint="y"), as_json=True) == leaf.exit_code


def test_exports_are_quoted_for_the_shell(tmp_path: Path) -> None:
    place = tmp_path / "it's a $place"
    layout = Layout(place, 8500, 1)
    place.mkdir()
    lines = export_lines(Mesh(layout.coordinators, layout.gateway, place, MeshRecord(layout)))
    assert all(re.match(r"export [A-Z_]+=\S", line) for line in lines)
    quoted = str(place).replace("'", "'\"'\"'")
    assert f"export AIMESH_STATE_DIR='{quoted}'" in lines
    assert "export AIMESH_GATEWAY=127.0.0.1:8504" in lines
    bootstrap = json.loads((place / "xds_bootstrap.json").read_text())
    assert "127.0.0.1:8503" in bootstrap["xds_servers"][0]["server_uri"]


def test_names_and_parameters() -> None:
    assert parse_pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for wrong in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(AimeshError, match="--param"):
            parse_pairs(wrong)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_an_enum_value_of_a_newer_mesh_is_shown_as_its_number() -> None:
    from aimesh.membership.v1 import membership_pb2

    assert enum_name(membership_pb2.NodeState.DESCRIPTOR, 2) == "READY"
    assert enum_name(membership_pb2.NodeState.DESCRIPTOR, 99) == "99"

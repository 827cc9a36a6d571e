"""Settings: what is written, overridden, misspelt or out of range."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from meshkit.errors import InvalidInputError
from meshkit.settings import load_settings


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Inner:
    size: Annotated[int, Field(ge=1)] = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Outer:
    path: Path
    port: int = 1
    inner: Inner = field(default_factory=Inner)


def load(tmp_path: Path, text: str, **environ: str) -> Outer:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_settings(Outer, "agent", file, environ)


def test_a_file_is_read_and_defaults_stand(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[agent]\npath = "/x"\n[agent.inner]\nsize = 7\n[coordinator]\nanything = 1')
    assert loaded == Outer(path=Path("/x"), inner=Inner(size=7))


def test_the_environment_overrides_the_file_down_to_nested_keys(tmp_path: Path) -> None:
    environ = {"AIMESH_AGENT_PORT": "9", "AIMESH_AGENT_INNER_NAMES": "a,b", "AIMESH_AGENT_PATH": "/y"}
    loaded = load(tmp_path, '[agent]\npath = "/x"\nport = 2', **environ)
    assert (loaded.path, loaded.port, loaded.inner.names) == (Path("/y"), 9, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agent]\n", "agent.path is required"),
        ('[agent]\npath = "/x"\nprot = 1', r"unknown key agent\.prot \(did you mean 'agent.port'\?\)"),
        ('[agent]\npath = "/x"\n[agent.inner]\nsiez = 1', r"agent\.inner\.siez \(did you mean 'agent.inner.size'\?\)"),
        ('[agent]\npath = "/x"\n[agent.inner]\nsize = 0', r"agent\.inner\.size = 0: Input should be greater"),
        ('[agent]\npath = "/x"\nport = "many"', r"agent\.port = 'many': Input should be a valid integer"),
        ("[agnet]\n", r"unknown table \[agnet\]\. did you mean 'agent'"),
        ("agent = 3", "'agent' must be a table"),
        ('[agent]\npath = "/x"\ninner = "y"', r"agent\.inner = 'y': Input should be a dictionary"),
        ("[agent", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        load_settings(Outer, "agent", tmp_path / "none.toml", {})

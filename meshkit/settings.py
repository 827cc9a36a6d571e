"""Settings: one frozen dataclass a concern, from a TOML table and the environment, validated at start.

A settings class is a pydantic dataclass with `frozen=True` and `extra="forbid"`; each field carries its documentation
in `metadata["doc"]`, from which config.example.toml is held complete.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from meshkit.errors import InvalidInputError

Settings = TypeVar("Settings")

TABLES = ("log", "coordinator", "agent", "gateway")
"""Top-level tables of a configuration file. One file may hold all of them; each process reads its own and [log]."""


def load_settings(
    kind: type[Settings], table: str, path: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Reads `table` of the TOML file, lets AIMESH_<TABLE>_<KEY> override each key, and validates.

    Nested tables are joined with underscores: [agent.triton] grpc_port is AIMESH_AGENT_TRITON_GRPC_PORT. Lists are
    given with commas. Raises InvalidInputError naming the file, the key and the expected form.
    """
    source = str(path) if path else "the environment"
    document = _read(path) if path else {}
    for name in document:
        if name not in TABLES:
            raise InvalidInputError(f"{source}: unknown table [{name}]", hint=_closest(name, TABLES))
    values = document.get(table, {})
    if not isinstance(values, dict):
        raise InvalidInputError(f"{source}: '{table}' must be a table, written [{table}]")
    merged = _override(kind, values, f"AIMESH_{table.upper()}", os.environ if environ is None else environ)
    try:
        return TypeAdapter(kind).validate_python(merged)
    except ValidationError as error:
        raise InvalidInputError(_explain(error, kind, table, source)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidInputError(f"configuration file {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not valid TOML: {error}") from None


def _override(kind: type[Any], values: dict[str, Any], prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    merged = dict(values)
    for key, hint in get_type_hints(kind).items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(hint, type) and is_dataclass(hint):
            below = merged.get(key, {})
            if not isinstance(below, dict):
                continue  # validation says what it must be
            nested = _override(hint, below, name, environ)
            if nested:
                merged[key] = nested
        elif name in environ:
            text = environ[name]
            merged[key] = [part for part in text.split(",") if part] if get_origin(hint) is tuple else text
    return merged


def _explain(error: ValidationError, kind: type[Any], table: str, source: str) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"unknown key {table}.{key} ({_closest(f'{table}.{key}', _keys(kind, f'{table}.'))})")
        elif problem["type"] == "missing":
            lines.append(f"{table}.{key} is required")
        else:
            lines.append(f"{table}.{key} = {problem['input']!r}: {problem['msg']}")
    return f"{source}: " + "; ".join(lines)


def _keys(kind: type[Any], prefix: str = "") -> list[str]:
    found = []
    for key, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint):
            found += _keys(hint, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def _closest(word: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from meshkit.settings import TABLES as READ_TABLES
from meshkit.settings import load_settings
from tools.cli.example_config import TABLES, example_config

FILE = Path(__file__).parents[3] / "config.example.toml"


def test_the_file_is_what_the_settings_say() -> None:
    assert FILE.read_text() == example_config(), "run: python -m tools.cli.example_config > config.example.toml"


def test_every_table_is_there() -> None:
    assert set(TABLES) == set(READ_TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_each_process_accepts_the_example(table: str) -> None:
    load_settings(TABLES[table], table, FILE, environ={})


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_there_with_its_documentation(table: str) -> None:
    text = FILE.read_text()
    for name in keys(TABLES[table]):
        assert f"\n{name} = " in text or f"\n# {name} = " in text, name


def keys(kind: type[Any]) -> list[str]:
    found = []
    for name, hint in get_type_hints(kind).items():
        found += keys(hint) if isinstance(hint, type) and is_dataclass(hint) else [name]
    return found

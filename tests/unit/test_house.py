"""The house: imports go one way, and the rooms in the middle meet only in proto/."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIDDLE = {"node_agent", "coordinator", "inference", "training"}
MAY_IMPORT = {
    "meshkit": {"aimesh"},
    **{room: {"aimesh", "meshkit"} for room in MIDDLE},
    "tools": {"aimesh", "meshkit", *MIDDLE},
}
ROOMS = {"aimesh", "meshkit", "tools", "tests", *MIDDLE}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_downwards(room: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in (ROOT / room).rglob("*.py")
        if (bad := (imported(path) & ROOMS) - MAY_IMPORT[room] - {room})
    }
    assert not wrong

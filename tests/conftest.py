"""How tests share the machine: what shares servers runs on one worker, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests that share a session's or a module's servers; all others go where a worker is free."""
    for item in items:
        area, *rest = item.path.relative_to(HERE).parts
        if area == "contract":
            item.add_marker(pytest.mark.xdist_group("contract"))
        elif area == "mesh" and rest[0] in ("inference", "xds"):
            item.add_marker(pytest.mark.xdist_group("/".join(rest)))

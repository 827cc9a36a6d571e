"""How tests share the machine: what shares servers runs on one worker, one after the other."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

# The machines are shared, so no example is timed; and each run draws the same ones.
settings.register_profile("shared", deadline=None, derandomize=True)
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/chaos."""
    group = parser.getgroup("chaos")
    group.addoption("--chaos", choices=["short", "all"], default="short", help="all: the long fault scenarios too")
    group.addoption("--soak", type=float, metavar="SECONDS", help="watch a mesh for growth, for so long")


@pytest.hookimpl(wrapper=True)  # before xdist, which reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, object, object]:
    """Groups the tests that share a session's or a module's servers; all others go where a worker is free."""
    for item in items:
        area, *rest = item.path.relative_to(HERE).parts
        if area == "contract" or (area == "mesh" and rest[0] == "tools"):
            # Whole meshes, whose blocks of ports must not be taken by one another while they are down for a moment.
            item.add_marker(pytest.mark.xdist_group("meshes"))
        elif area == "chaos":
            item.add_marker(pytest.mark.xdist_group("chaos"))  # one mesh for all
        elif area == "mesh" and rest[0] in ("inference", "xds"):
            item.add_marker(pytest.mark.xdist_group("/".join(rest)))
    result = yield
    grouped = [item for item in items if item.get_closest_marker("xdist_group")]
    if config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError(
            "pytest-xdist does not group tests: it and pytest are not the versions of constraints.txt"
        )
    return result

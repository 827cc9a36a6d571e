from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mesh.tools.meshes import Aimesh


@pytest.fixture
def new_mesh(tmp_path: Path) -> Iterator[Callable[[str], Aimesh]]:
    """Makes command lines for meshes in directories of their own; whatever runs there is ended at last."""
    with ExitStack() as stack:

        def make(name: str) -> Aimesh:
            mesh = Aimesh(tmp_path / name)
            stack.callback(lambda: mesh.run("down"))
            return mesh

        yield make


@pytest.fixture
def mesh(new_mesh: Callable[[str], Aimesh]) -> Aimesh:
    return new_mesh("mesh")

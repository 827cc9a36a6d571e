"""The mesh that other people's clients are tried on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from inference.demo import demo_models
from tests.mesh.tools.meshes import Aimesh
from tools.bench.mesh import ADD_ONE_CONFIG, ADD_ONE_MODEL

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mesh:
    """What a client needs to know, and nothing more."""

    gateway: str
    """host:port of the gateway."""
    xds_bootstrap: Path
    """The file that GRPC_XDS_BOOTSTRAP names."""
    coordinator: str
    """host:port of a coordinator."""
    models: frozenset[str]
    """Models that are deployed and ready."""


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh as a user starts it, of two coordinators and two nodes, with a Python and a language model on both."""
    aimesh = Aimesh(tmp_path_factory.mktemp("contract") / "mesh")
    aimesh.run("up", "--detach", "--coordinators", "2", "--nodes", "2")
    try:
        source = aimesh.state_dir / "addone"
        (source / "1").mkdir(parents=True)
        (source / "config.pbtxt").write_text(ADD_ONE_CONFIG)
        (source / "1" / "model.py").write_text(ADD_ONE_MODEL)
        for name, path in (("addone", source), ("smollm2", demo_models()[0])):
            aimesh.run("models", "push", str(path), "--name", name, "--version", "1.0.0")
            aimesh.run("deploy", name, "--replicas", "2")
        cluster = aimesh.json("status")["cluster"]
        yield Mesh(
            cluster["gateway"],
            aimesh.state_dir / "xds_bootstrap.json",
            cluster["coordinators"][0]["address"],
            frozenset({"addone", "smollm2"}),
        )
    finally:
        aimesh.run("down")


@pytest.fixture(autouse=True)
def _xds_bootstrap(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `aimesh env` has a user's shell do."""
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(mesh.xds_bootstrap))


def require_model(mesh: Mesh, name: str) -> None:
    """Skips the test on a mesh that does not serve the model."""
    if name not in mesh.models:
        pytest.skip(f"this mesh does not serve {name}")


def require_node() -> str:
    """Path of Node.js. Without it, or without the packages of package.json, the test is skipped; with
    AIMESH_REQUIRE_ALL=1, as in CI, it fails."""
    node = shutil.which("node")
    if node is None:
        _missing("Node.js is not installed")
    elif not (REPOSITORY / "node_modules" / "@grpc" / "grpc-js").is_dir():
        _missing("node_modules is missing; run: npm ci")
    return str(node)


def _missing(why: str) -> None:
    if os.environ.get("AIMESH_REQUIRE_ALL") == "1":
        pytest.fail(f"{why}, and AIMESH_REQUIRE_ALL=1 asks for every test")
    pytest.skip(why)

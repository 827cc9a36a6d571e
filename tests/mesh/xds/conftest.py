"""One pair of Tritons a module, in a mesh whose state each test may change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mesh.xds import harness
from tests.mesh.xds.harness import Coordinator
from tests.mesh.xds.triton import RunningTriton, tritons


@dataclass(frozen=True)
class XdsMesh:
    """What a test works with."""

    folder: Path
    coordinator: Coordinator
    tritons: list[RunningTriton]
    gateway: str


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XdsMesh]:
    folder = tmp_path_factory.mktemp("xds")
    (folder / "triton").mkdir()
    with (
        pytest.MonkeyPatch.context() as patch,
        harness.coordinator() as coordinator,
        tritons(folder / "triton", 2) as running,
    ):
        bootstrap = harness.write_client_bootstrap(folder / "client.json", [coordinator.address])
        patch.setitem(os.environ, "GRPC_XDS_BOOTSTRAP", str(bootstrap))
        coordinator.publish(harness.state_of(1, [], []))
        with harness.envoy(folder, [coordinator.address], access_log=str(folder / "access.log")) as gateway:
            yield XdsMesh(folder, coordinator, running, gateway)

"""Clients in another language: Node.js on @grpc/grpc-js, and on @grpc/grpc-js-xds with no proxy."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.contract.conftest import REPOSITORY, Mesh, require_node


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's contract as a FileDescriptorSet, which every protobuf tool reads."""
    found = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    path = tmp_path_factory.mktemp("descriptors") / "kserve.binpb"
    path.write_bytes(found.SerializeToString())
    return path


def test_through_the_gateway(mesh: Mesh, descriptors: Path) -> None:
    seen = _node_client(mesh, descriptors, mesh.gateway)
    assert seen.pop("missing") == {
        "code": "NOT_FOUND",
        "details": "model 'nosuch' does not exist; see: aimesh models list",
    }
    _assert_served(seen)


def test_over_xds_with_no_proxy(mesh: Mesh, descriptors: Path) -> None:
    seen = _node_client(mesh, descriptors, "xds:///addone", "xds:///nosuch")
    assert seen.pop("missing")["code"] == "NOT_FOUND"
    _assert_served(seen)


def _assert_served(seen: dict[str, Any]) -> None:
    assert seen == {
        "live": True,
        "modelReady": True,
        "metadata": ["INPUT0"],
        "config": "python",
        "infer": [2, 3.5, -3],
        "stream": [{"id": "a", "numbers": [2]}, {"id": "b", "numbers": [3]}],
    }


def _node_client(mesh: Mesh, descriptors: Path, *targets: str) -> dict[str, Any]:
    script = REPOSITORY / "tests" / "contract" / "node" / "client.js"
    ran = subprocess.run(
        [require_node(), str(script), str(descriptors), *targets],
        env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(mesh.xds_bootstrap)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer

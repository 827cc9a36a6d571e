"""The mesh under test, started and asked as a user would, by the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADD_ONE_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ADD_ONE_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            found = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", found + 1)]))
        return answers
"""


@dataclass(frozen=True)
class BenchMesh:
    """A running mesh; what is measured of processes is of its first node."""

    state_dir: Path
    status: dict[str, Any]

    @property
    def gateway(self) -> str:
        """host:port."""
        return str(self.status["cluster"]["gateway"])

    @property
    def triton(self) -> str:
        """host:port of the node's Triton."""
        return str(self.status["nodes"][0]["triton"])

    def pids(self) -> dict[str, int]:
        """Process ids by what they are."""
        node, cluster = self.status["nodes"][0], self.status["cluster"]
        return {
            "gateway": cluster["gateway_pid"],
            "coordinator": cluster["coordinators"][0]["pid"],
            "agent": node["pid"],
            "triton": node["triton_pid"],
            "etcd": cluster["etcd"][0]["pid"],
        }


def aimesh(state_dir: Path, *words: str) -> str:
    """Runs the command line against this mesh; what it printed. Raises CalledProcessError with its errors shown."""
    argv = [sys.executable, "-m", "tools.cli.main", *words, "--state-dir", str(state_dir)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextlib.contextmanager
def running(state_dir: Path, nodes: int = 1) -> Iterator[tuple[BenchMesh, float]]:
    """A mesh and the seconds its start took; stopped with the block."""
    began = time.monotonic()
    aimesh(state_dir, "up", "--detach", "--nodes", str(nodes))
    took = time.monotonic() - began
    try:
        yield BenchMesh(state_dir, json.loads(aimesh(state_dir, "status", "--json"))), took
    finally:
        aimesh(state_dir, "down")


def deploy_add_one(mesh: BenchMesh) -> None:
    """A model that costs next to nothing, so that the path is what is measured."""
    folder = mesh.state_dir / "addone"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(ADD_ONE_CONFIG)
    (folder / "1" / "model.py").write_text(ADD_ONE_MODEL)
    aimesh(mesh.state_dir, "models", "push", str(folder), "--name", "addone", "--version", "1.0.0")
    aimesh(mesh.state_dir, "deploy", "addone", "--replicas", "1")


def deploy_language_model(mesh: BenchMesh, model: Path) -> None:
    """The demo's language model."""
    words = ["--name", "smollm2", "--version", "1.0.0", "--param", "n_parallel=8"]
    aimesh(mesh.state_dir, "models", "push", str(model), *words)
    aimesh(mesh.state_dir, "deploy", "smollm2", "--replicas", "1")

"""Real meshes through the command line, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tools.local.ports import taken
from tools.local.record import MeshRecord, read_record

MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]) for x in inputs]
"""
CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }]
"""


@dataclass(frozen=True)
class Aimesh:
    """`aimesh` for the mesh of one directory."""

    state_dir: Path

    def try_run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs a command."""
        return subprocess.run(
            [sys.executable, "-m", "tools.cli.main", *arguments],
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def run(self, *arguments: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs a command and holds its exit code."""
        done = self.try_run(*arguments, **environ)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of its commands."""
        keep = {key: value for key, value in os.environ.items() if not key.startswith("AIMESH_")}
        return {**keep, "AIMESH_STATE_DIR": str(self.state_dir), **more}

    @property
    def record(self) -> MeshRecord:
        """What mesh.json says."""
        record = read_record(self.state_dir)
        assert record is not None
        return record

    def processes(self) -> list[psutil.Process]:
        """Everything alive whose command line or environment names the directory."""
        found = []
        for process in psutil.process_iter():
            try:
                named = [*process.cmdline(), *process.environ().values()]
                if process.status() != psutil.STATUS_ZOMBIE and any(str(self.state_dir) in text for text in named):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def hold_gone(self) -> None:
        """Holds that no process and no port is left."""
        until(lambda: not self.processes(), lambda: f"left: {[process.cmdline() for process in self.processes()]}")
        assert taken(self.record.layout.ports()) == []

    def add_model(self, name: str = "adder", version: str = "1.0.0", text: str = MODEL) -> None:
        """Pushes a model that adds one to x."""
        place = self.state_dir / "source" / version
        (place / "1").mkdir(parents=True, exist_ok=True)
        (place / "config.pbtxt").write_text(CONFIG)
        (place / "1" / "model.py").write_text(text)
        self.run("models", "push", str(place), "--name", name, "--version", version)

    def adds(self) -> bool:
        """Whether the model answers, and rightly."""
        done = self.try_run("infer", "adder", "--input", "x=[1, 2]", "--json")
        return done.returncode == 0 and json.loads(done.stdout)["outputs"]["y"]["data"] == [2.0, 3.0]


def until(condition: Callable[[], object], said: Callable[[], str] = lambda: "", within_s: float = 30.0) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)

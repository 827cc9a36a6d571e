from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.tools.meshes import Aimesh

DEMO = [sys.executable, "-m", "tools.cli.main", "demo"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Aimesh]:
    mesh = Aimesh(tmp_path / "mesh")
    yield mesh
    mesh.run("down")


def test_the_demo_shows_two_models_at_work_and_leaves_nothing(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(DEMO, env=environ, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    for expected in ("network", "(1) The server room", "1.000", "node-3", "READY", "xds:///smollm2", "aimesh up"):
        assert expected in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert Aimesh(tmp_path).processes() == []


def test_ctrl_c_ends_everything_the_demo_started(place: Aimesh) -> None:
    command = [*DEMO, "--nodes", "1", "--state-dir", str(place.state_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Pushing" in line:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode != 0
    place.hold_gone()

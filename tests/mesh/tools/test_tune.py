"""`aimesh train tune` as a process that is killed, against a service whose jobs go as the test says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from aimesh.training.v1 import training_pb2
from tests.unit.tools.tuning.service import SUCCEEDED, Script, Scripted, serving
from tools.cli.target import Mesh

STUDY = """
name = "flowers"
task = "classifier"
epochs = 1
[data]
builtin = "iris"
holdout = 0.2
[tune]
metric = "accuracy"
direction = "maximize"
trials = 4
parallel = 2
publish = true
[tune.search]
lr = { type = "log", low = 1e-3, high = 0.1 }
hidden = { type = "categorical", choices = [[8], [16]] }
"""


class Command:
    """`aimesh` against one mesh and one database."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        keep = {key: value for key, value in os.environ.items() if not key.startswith("AIMESH_")}
        self.environ = {
            **keep,
            "AIMESH_COORDINATORS": mesh.coordinators[0],
            "AIMESH_TUNE_STORAGE": f"sqlite:///{folder / 'tuning.db'}",
        }

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        words = (sys.executable, "-m", "tools.cli.main", "train", "tune", *arguments)
        return await asyncio.create_subprocess_exec(*words, env=self.environ, stdout=pipe, stderr=pipe)

    async def run(self, *arguments: str) -> str:
        process = await self.start(*arguments)
        out, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        return out.decode()


@pytest.mark.timeout(120)
async def test_a_search_that_is_killed_goes_on_and_submits_nothing_twice(tmp_path: Path) -> None:
    jobs = Scripted(lambda values: Script(value=values["lr"], holds_at=2))
    (tmp_path / "study.toml").write_text(STUDY)
    running: list[asyncio.subprocess.Process] = []

    def kill_at_the_second(_: training_pb2.Job) -> None:
        if len(jobs.requests) == 2:  # its answer never arrives
            running[0].send_signal(signal.SIGKILL)

    jobs.on_submit = kill_at_the_second
    async with serving(jobs) as mesh:
        aimesh = Command(mesh, tmp_path)
        running.append(await aimesh.start("start", str(tmp_path / "study.toml")))
        await running[0].communicate()
        assert running[0].returncode == -signal.SIGKILL

        running.append(await aimesh.start("start", str(tmp_path / "study.toml")))
        await jobs.until_watched(2)
        running[1].kill()
        await running[1].communicate()

        jobs.released.set()
        found = json.loads(await aimesh.run("start", str(tmp_path / "study.toml"), "--json"))
        shown = await aimesh.run("show", "flowers", "--plot", str(tmp_path / "study.png"))
        assert await aimesh.run("list", "--json")

    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4
    assert len(jobs.jobs) == 5
    assert all(job.state == SUCCEEDED for job in jobs.jobs.values())
    assert {trial["job"] for trial in found["trials"]} < set(jobs.jobs)
    assert found["best"]["value"] == max(trial["value"] for trial in found["trials"])
    assert found["model"] == "flowers:1.0.0"
    assert "4 complete" in shown
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")

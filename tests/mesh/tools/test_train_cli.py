from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.mesh.tools.meshes import Aimesh, until

INVALID, NOT_FOUND, PRECONDITION = 2, 3, 5
JOB = """
name = "flowers"
epochs = 2
batch_size = 50
[code]
path = "own"
entry = "train:Trainer"
[data]
files = ["flowers.csv"]
holdout = 0.2
[resources]
memory_bytes = "600MB"
"""
TRAINER = """
from torch import nn
from torch.nn import functional


class Trainer:
    def __init__(self, job):
        print("learns from", len(job.samples), "flowers")

    def model(self):
        return nn.Linear(4, 3)

    def loss(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x.float()), y)

    def example(self, batch):
        return (batch[0].float(),)
"""


def write(folder: Path, trainer: str = TRAINER) -> str:
    """A job with a file of data and code of its own."""
    from sklearn.datasets import load_iris

    (folder / "own").mkdir(parents=True)
    (folder / "own" / "train.py").write_text(trainer)
    x, y = load_iris(return_X_y=True)
    rows = [",".join(map(str, [*sample, label])) for sample, label in zip(x, y, strict=True)]
    (folder / "flowers.csv").write_text("\n".join(["a,b,c,d,label", *rows]) + "\n")
    (folder / "job.toml").write_text(JOB)
    return str(folder / "job.toml")


@pytest.mark.timeout(240)
def test_a_job_from_submit_to_its_model(mesh: Aimesh, tmp_path: Path) -> None:
    mesh.run("up", "--detach")
    assert mesh.json("train", "list") == []
    found = mesh.json("train", "submit", write(tmp_path / "good"))
    assert list(found) == ["job"]
    job = found["job"]
    broken = mesh.json("train", "submit", write(tmp_path / "broken", "import nothing_of_that_name\n"))["job"]
    assert job.startswith("flowers-")
    assert broken != job

    mesh.run("train", "rm", job, code=PRECONDITION)
    error = mesh.run("train", "status", broken, "--watch", code=PRECONDITION).stderr
    assert "nothing_of_that_name" in error
    watched = mesh.run("train", "status", job, "--watch").stdout
    assert "SUCCEEDED" in watched
    assert "aimesh deploy flowers:1.0.0" in watched

    status = mesh.json("train", "status", job)
    assert list(status)[:7] == ["state", "step", "steps", "loss", "workers", "model", "error"]
    assert (status["state"], status["step"], status["steps"], status["model"]) == ("SUCCEEDED", 6, 6, "flowers:1.0.0")
    assert status["loss"] > 0
    assert [(worker["node"], worker["rank"]) for worker in status["workers"]] == [("node-1", 0)]
    assert {each["job"]: each["state"] for each in mesh.json("train", "list")} == {job: "SUCCEEDED", broken: "FAILED"}
    assert [each["job"] for each in mesh.json("train", "list", "--state", "failed")] == [broken]
    [model] = mesh.json("models", "list")
    assert (model["name"], model["version"], model["runtime"]) == ("flowers", "1.0.0", "torch")

    assert "learns from 150 flowers" in mesh.run("train", "logs", job).stdout
    rows = list(csv.DictReader(io.StringIO(mesh.run("train", "results", job, "--csv", "-").stdout)))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    results = json.loads(mesh.run("train", "results", job, "--json", "--plot", str(tmp_path / "p.png")).stdout)
    assert len(results["points"]) == 6
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert mesh.json("train", "strategy", "explain")["jobs"] == 0, "six steps teach nothing"

    mesh.run("train", "pause", job, code=PRECONDITION)
    mesh.run("train", "status", "nobody", code=NOT_FOUND)
    (tmp_path / "wrong.toml").write_text(JOB.replace("epochs", "epoch"))
    assert "did you mean 'epochs'" in mesh.run("train", "submit", str(tmp_path / "wrong.toml"), code=INVALID).stderr
    mesh.run("train", "rm", job)
    until(lambda: [each["job"] for each in mesh.json("train", "list")] == [broken])
    assert len(mesh.json("models", "list")) == 1

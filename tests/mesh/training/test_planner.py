"""The planning process as an agent starts it: a folder in, events out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from training.contract import Folder


def test_the_process_writes_the_plan_and_ends(tmp_path: Path) -> None:
    spec = training_pb2.JobSpec(task="classifier", data=training_pb2.Data(builtin="iris"), epochs=2)
    task = training_pb2.TrainingTask(job="a-123456", kind=training_pb2.TASK_KIND_PLAN, spec=spec)
    code, (first, last) = planned(tmp_path, task)
    assert code == 0
    assert (first.plan.samples, first.plan.strategy) == (150, training_pb2.STRATEGY_SINGLE)
    assert last.HasField("done")


def planned(folder: Path, task: training_pb2.TrainingTask) -> tuple[int, list[training_pb2.WorkerEvent]]:
    Folder(folder).task.write_text(json_format.MessageToJson(task))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "training.planner", str(folder)]
    code = subprocess.run(command, env=environment, timeout=120, check=False).returncode
    lines = Folder(folder).events.read_text().splitlines()
    return code, [json_format.Parse(line, training_pb2.WorkerEvent()) for line in lines]

"""The steps of a job as its workers noted them on their nodes' disks: no coordinator has to be there to tell them."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.chaos.mesh import Mesh
from tests.chaos.training.history import Step


def steps_of(mesh: Mesh, job_id: str) -> list[Step]:
    """Of every rank 0 on any node, by time."""
    found = []
    offset_s = time.time() - time.monotonic()
    for node in mesh.nodes:
        for path in (mesh.data_dir(node) / "training" / job_id).glob("*-0/events.jsonl"):
            found += _steps(path, int(path.parent.name.partition("-")[0]), offset_s)
    return sorted(found, key=lambda step: step.at)


def _steps(path: Path, attempt: int, offset_s: float) -> list[Step]:
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or b'"point"' not in line:  # one may be under way
            continue
        event: dict[str, Any] = json.loads(line)
        point = event["point"]
        at = datetime.fromisoformat(event["at"]).timestamp() - offset_s
        clients = int(point["values"].get("clients", 0))
        found.append(Step(at, attempt, int(point["step"]), float(point["loss"]), clients))
    return found

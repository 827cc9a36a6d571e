"""One federated job of a server and a process with all clients, and what its server takes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from google.protobuf import json_format

from aimesh.training.v1 import training_pb2

ROOT = Path(__file__).parents[2]


def measure(system: str, python: str, spec: training_pb2.JobSpec) -> dict[str, float]:
    """Runs a server and its clients to the end."""
    with tempfile.TemporaryDirectory(prefix="aimesh-federated-") as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        free.close()
        task = training_pb2.TrainingTask(job="bench", attempt=1, kind=training_pb2.TASK_KIND_TRAIN, go=True, spec=spec)
        task.plan.strategy = training_pb2.STRATEGY_FEDERATED
        task.workers.add(node="here", address="127.0.0.1")
        task.rendezvous = f"127.0.0.1:{port}"
        folders = {role: Path(home) / role for role in ("server", "clients")}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = []
        for role, folder in folders.items():
            folder.mkdir()
            (folder / "task.json").write_text(json_format.MessageToJson(task))
            with (folder / "log.txt").open("w") as log:
                command = [python, *_command(system, role), str(folder)]
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT))
        try:
            found = _watch(started[0], port)
        finally:
            for process in started:
                process.kill()
                process.wait()
        points = _points(folders["server"], system)
        if len(points) < spec.steps:
            raise RuntimeError((folders["server"] / "log.txt").read_text()[-3000:])
        seconds = [point["at"] for point in points]
        return {
            **found,
            "accuracy": points[-1]["accuracy"],
            "rounds_per_s": (len(seconds) - 1) / (seconds[-1] - seconds[0]),
            "bytes_per_round": found["bytes"] / len(points),
            "cpu_per_round_s": found["cpu_s"] / len(points),
        }


def _command(system: str, role: str) -> list[str]:
    if system == "aimesh":
        return ["-m", "training.federated.aggregator" if role == "server" else "training.worker"]
    return ["-m", "tools.bench.federated_peers", role]


def _watch(server: subprocess.Popen[bytes], port: int) -> dict[str, float]:
    """What a server takes: memory before the first client and at most, CPU time from then on, bytes on its sockets."""
    process = psutil.Process(server.pid)
    first, most, before, cpu, moved = 0.0, 0.0, 0.0, 0.0, dict[str, int]()
    while server.poll() is None:
        try:
            resident, times = process.memory_info().rss, process.cpu_times()
        except psutil.NoSuchProcess:
            break
        most, cpu = max(most, resident), times.user + times.system
        if seen := _bytes(port):
            first, before = first or resident, before or cpu
            moved |= seen
        time.sleep(0.02)
    return {"resident_first": first, "resident_most": most, "cpu_s": cpu - before, "bytes": float(sum(moved.values()))}


def _bytes(port: int) -> dict[str, int]:
    """Bytes sent and received until now on each connection of a server's port."""
    shown = subprocess.run(["ss", "-tinHO", f"sport = :{port}"], capture_output=True, text=True, check=False).stdout
    found = {}
    for line in shown.splitlines():
        counts = re.findall(r"bytes_(?:acked|received):(\d+)", line)
        found[line.split()[4]] = sum(map(int, counts))
    return found


def _points(folder: Path, system: str) -> list[dict[str, float]]:
    if system != "aimesh":
        return [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    found = []
    for event in events:
        if "point" in event:
            message = json_format.ParseDict(event["point"], training_pb2.MetricPoint())
            found.append({"at": message.at.ToNanoseconds() / 1e9, "accuracy": message.values["accuracy"]})
    return found

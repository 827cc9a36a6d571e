"""Federated rounds beside Flower's: the same model, data, clients' training and seeds, each over gRPC on this machine.

    python -m tools.bench.federated [--clients 10 100] [--rounds 12] [--seeds 3] [--venv FOLDER] [--json FILE]

Flower is no dependency: it is installed into an environment of its own, outside the repository; without it only our own
rows are printed. A server process and one process with all clients each; what is measured is the server's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from aimesh.training.v1 import federated_pb2, training_pb2

ROOT = Path(__file__).parents[2]
FLOWER = "flwr>=1.41,<1.42"
"""The release that was compared with."""
COLUMNS = (
    "model",
    "clients",
    "system",
    "accuracy",
    "rounds/s",
    "MB a round",
    "MB before",
    "MB at most",
    "CPU ms a round",
)
HIDDEN = {"digits, 7 k parameters": "[96]", "wide, 1.1 M parameters": "[1024, 1024]"}


def main() -> None:
    """Measures and prints."""
    options = _options()
    if options.role:
        _ROLES[options.role](Path(options.folder))
        return
    pythons = {"aimesh": sys.executable}
    if flower := flower_python(options.venv):
        pythons["Flower"] = flower
    rows = []
    for model in HIDDEN:
        for clients in options.clients:
            for seed in range(options.seeds if model.startswith("digits") else 1):
                for system, python in pythons.items():
                    count = options.rounds if model.startswith("digits") else min(options.rounds, 4)
                    row = {"model": model, "clients": clients, "seed": seed, "system": system}
                    rows.append(row | measure(system, python, spec_of(model, clients, seed, count)))
                    print(json.dumps(rows[-1]), flush=True)
    Console(width=None if Console().is_terminal else 160).print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def flower_python(venv: Path) -> str:
    """The interpreter that has Flower, made when it is not there; empty when it cannot be installed."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    if subprocess.run([python, "-c", "import flwr"], capture_output=True, check=False).returncode:
        made = subprocess.run([python, "-m", "pip", "install", "-q", FLOWER, "numpy<2"], check=False)
        if made.returncode:
            print(f"{FLOWER} cannot be installed here: only our own rows follow")
            return ""
    # Ours comes after what Flower brought: the same torch and the same training for both.
    (own,) = (Path(path) for path in sys.path if path.endswith("site-packages"))
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "aimesh-bench.pth").write_text(f"{ROOT}\n{ROOT / 'proto'}\n{own}\n")
    return str(python)


def spec_of(model: str, clients: int, seed: int, rounds: int) -> training_pb2.JobSpec:
    """The job: FedAvg on digits, split by a Dirichlet distribution, everyone in every round."""
    return training_pb2.JobSpec(
        task="classifier",
        data=training_pb2.Data(
            builtin="digits", holdout=0.2, partition=training_pb2.Partition(kind="dirichlet", alpha=1.0)
        ),
        hyperparameters={"hidden": HIDDEN[model], "optimizer": '"sgd"', "momentum": "0", "lr": "0.3"},
        steps=rounds,
        batch_size=32,
        seed=seed,
        federated=training_pb2.Federated(
            clients=clients, clients_per_node=clients, min_clients=clients, most_norm=1e9, local_epochs=1
        ),
        output=training_pb2.Output(discard=True),
    )


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
    return ["-m", "tools.bench.federated", "--role", role, "--folder"]


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


def _simulation(folder: Path) -> Any:
    """The job's model, data and clients, as both systems have them."""
    import torch

    from training.federated.simulate import Simulation

    torch.set_num_threads(1)
    task = json_format.Parse((folder / "task.json").read_text(), training_pb2.TrainingTask())
    return task, Simulation(task.spec, folder)


def flower_server(folder: Path) -> None:
    """Flower's FedAvg over gRPC, evaluated on the same held-out samples."""
    import flwr
    from flwr.server.strategy import FedAvg

    from training.federated import local
    from training.run.finish import evaluate

    task, ours = _simulation(folder)
    names, count = list(ours.desk.state.model), int(task.spec.federated.clients)
    points = (folder / "points.jsonl").open("w", buffering=1)

    def measured(number: int, arrays: list[Any], _: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        local.load(ours.model, dict(zip(names, arrays, strict=True)))
        found = evaluate(ours.entry, ours.kept, ours.model, ours.group)
        if number:
            points.write(json.dumps({"at": time.time(), "accuracy": found["accuracy"]}) + "\n")
        return found["loss"], {}

    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=count,
        min_available_clients=count,
        evaluate_fn=measured,
        on_fit_config_fn=lambda number: {"round": number},
        initial_parameters=flwr.common.ndarrays_to_parameters(list(ours.desk.state.model.values())),
    )
    config = flwr.server.ServerConfig(num_rounds=int(task.spec.steps))
    flwr.server.start_server(server_address=task.rendezvous, config=config, strategy=strategy)


def flower_clients(folder: Path) -> None:
    """All clients as threads of one process; they train one after the other, as ours do."""
    from flwr.client import NumPyClient, start_client

    from training.federated import local, sampling

    task, ours = _simulation(folder)
    names, turn = list(ours.desk.state.model), threading.Lock()

    class Client(NumPyClient):  # type: ignore[misc]
        def __init__(self, share: Any) -> None:
            self.share = share

        def fit(self, parameters: list[Any], config: Mapping[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            given = dict(zip(names, parameters, strict=True))
            seed = sampling.client_seed(task.spec.seed, int(config["round"]), self.share.client)
            said = federated_pb2.Round(number=int(config["round"]), local_epochs=1, seed=seed)
            with turn:
                trained = local.train(ours.entry, ours.model, self.share.learn, said, given, {}, ours.group)
            return [given[name] + trained.difference[name] for name in names], len(self.share.learn), {}

    def run(share: Any) -> None:
        start_client(server_address=task.rendezvous, client=Client(share).to_client(), max_retries=60)

    _wait_for(task.rendezvous)
    threads = [threading.Thread(target=run, args=(share,)) for share in ours.shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _wait_for(target: str) -> None:
    host, _, port = target.rpartition(":")
    for _ in range(600):
        try:
            with socket.create_connection((host, int(port)), 1):
                return
        except OSError:
            time.sleep(0.1)


_ROLES = {"server": flower_server, "clients": flower_clients}


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a model, number of clients and system: means over seeds, with standard deviations where there are."""
    made = Table(title="FedAvg over gRPC, one machine; the server's figures")
    for column in COLUMNS:
        made.add_column(column, justify="left" if column in ("model", "system") else "right")
    for key in dict.fromkeys((row["model"], row["clients"], row["system"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["clients"], row["system"]) == key]

        def mean(name: str, scale: float = 1.0, form: str = ".2f", mine: list[dict[str, Any]] = mine) -> str:
            values = [row[name] / scale for row in mine]
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            return f"{statistics.fmean(values):{form}}{spread}"

        made.add_row(
            key[0], str(key[1]), key[2], mean("accuracy", form=".4f"), mean("rounds_per_s"),
            mean("bytes_per_round", 1e6), mean("resident_first", 1e6, ".0f"), mean("resident_most", 1e6, ".0f"),
            mean("cpu_per_round_s", 1e-3, ".0f"),
        )  # fmt: skip
    return made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.federated")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "aimesh-flower")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=list(_ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

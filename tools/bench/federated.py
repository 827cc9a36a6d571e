"""Federated rounds beside Flower's: the same model, data, clients' training and seeds, each over gRPC on this machine.

    python -m tools.bench.federated [--clients 10 100] [--rounds 12] [--seeds 3] [--venv FOLDER] [--json FILE]

Flower is no dependency: it is installed into an environment of its own, outside the repository; without it only our own
rows are printed. A server process and one process with all clients each; what is measured is the server's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aimesh.training.v1 import training_pb2
from tools.bench.federated_run import ROOT, measure

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
    return parser.parse_args()


if __name__ == "__main__":
    main()

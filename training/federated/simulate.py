"""Any number of clients in one process: for experiments and benchmarks.

    python -m training.federated.simulate --aggregation fedavg scaffold --partition labels --clients 10 --rounds 30

prints, for each way to aggregate, mean and standard deviation over seeds of accuracy and loss on held-out samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aimesh.training.v1 import training_pb2
from training.federated.settings import AGGREGATIONS
from training.federated.simulation import Course, simulate


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; 0 of one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def spec_of(options: argparse.Namespace, aggregation: str, seed: int) -> training_pb2.JobSpec:
    """The job that the options say."""
    spec = training_pb2.JobSpec(
        task="classifier",
        data=training_pb2.Data(builtin=options.data, holdout=0.2),
        hyperparameters={
            "hidden": json.dumps(options.hidden),
            "optimizer": json.dumps(options.optimizer),
            "momentum": json.dumps(options.momentum),
            "lr": json.dumps(options.lr),
        },
        steps=options.rounds,
        batch_size=options.batch_size,
        seed=seed,
        strategy=training_pb2.STRATEGY_FEDERATED,
        federated=training_pb2.Federated(
            aggregation=AGGREGATIONS[aggregation],
            clients=options.clients,
            fraction=options.fraction,
            local_epochs=options.local_epochs,
            proximal=options.proximal,
            trim=options.trim,
            clip=options.clip,
            noise=options.noise,
            server_learning_rate=options.server_learning_rate,
        ),
    )
    spec.data.partition.kind = options.partition
    spec.data.partition.alpha = options.alpha
    spec.data.partition.labels_per_client = options.labels
    return spec


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.federated.simulate")
    parser.add_argument("--aggregation", nargs="+", choices=list(AGGREGATIONS), default=["fedavg"])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--hidden", type=int, nargs="*", default=[32])
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--partition", default="iid")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--labels", type=int, default=2)
    for name, default in (("clients", 10), ("rounds", 20), ("local-epochs", 1), ("batch-size", 32), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in (("fraction", 1.0), ("lr", 0.1), ("proximal", 0.01), ("trim", 0.1), ("clip", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--server-learning-rate", type=float, default=1.0)
    parser.add_argument("--json", type=Path, help="writes every round of every seed to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Simulates and prints."""
    import torch

    torch.set_num_threads(1)
    options = parse()
    everything: dict[str, list[dict[str, Any]]] = {}
    for aggregation in options.aggregation:
        courses = [simulate(spec_of(options, aggregation, seed)) for seed in range(options.seeds)]
        everything[aggregation] = [asdict(course) for course in courses]
        print(line(aggregation, courses), flush=True)  # noqa: T201  # what it is for
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


def line(name: str, courses: Sequence[Course]) -> str:
    """One row: figures at the last round of those that came to it, mean and standard deviation over seeds."""
    whole = [course for course in courses if not course.failed]
    text = f"{name:13} {len(whole)}/{len(courses)} seeds"
    if whole:
        for measured in whole[0].values[-1]:
            mean, deviation = spread([course.values[-1][measured] for course in whole])
            text += f"   {measured} {mean:.4f} ± {deviation:.4f}"
        if np.isfinite(whole[0].epsilon):
            text += f"   epsilon {whole[0].epsilon:.2f}"
    failed = [course.failed for course in courses if course.failed]
    return text + (f"   failed: {failed[0]}" if failed else "")


if __name__ == "__main__":
    main()

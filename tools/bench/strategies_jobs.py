"""The jobs of `tools.bench.strategies`: kinds that lie in different states of the chooser's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aimesh.training.v1 import training_pb2

WORKERS = 3
FIXED: Mapping[str, training_pb2.Strategy.ValueType] = {
    "single": training_pb2.STRATEGY_SINGLE,
    "ddp": training_pb2.STRATEGY_DDP,
    "tensor": training_pb2.STRATEGY_TENSOR,
    "pipeline": training_pb2.STRATEGY_PIPELINE,
}
"""One for each action of the chooser's table: FSDP is DDP's where memory is short."""
FEDERATED = "federated"
AUTO = "auto"
_SAMPLES, _WIDTH, _CLASSES = 20_000, 256, 10


@dataclass(frozen=True)
class Kind:
    """Jobs of one sort."""

    key: str
    """On the command line."""
    name: str
    """For people, with the classes that it lies in."""
    hidden: str
    batch: int
    steps: int
    """As many as take a few seconds alone."""
    own_data: bool = False
    """Whether it learns from the larger set instead of scikit-learn's digits."""
    federated: bool = False


KINDS = (
    Kind("small", "small model, little data", "[64]", 128, 500),
    Kind("medium", "medium model, little data", "[1024, 1024]", 256, 40),
    Kind("more", "medium model, more data", "[1024, 1024]", 512, 24, own_data=True),
    Kind("private", "private data", "[64]", 32, 12, federated=True),
)


def choices(kind: Kind) -> list[str]:
    """The fixed strategies that can be named for such a job: private data leaves none but one."""
    return [FEDERATED] if kind.federated else list(FIXED)


def spec_of(kind: Kind, choice: str, folder: Path) -> training_pb2.JobSpec:
    """A job that keeps no result, with a thread a worker; `folder` is where the larger set lies."""
    made = training_pb2.JobSpec(
        name=f"bench-{choice}",
        task="classifier",
        strategy=FIXED.get(choice, training_pb2.STRATEGY_AUTO),
        steps=kind.steps,
        batch_size=kind.batch,
        seed=1,
        hyperparameters={"hidden": kind.hidden, "lr": "0.001"},
        resources=training_pb2.Resources(min_workers=1, max_workers=WORKERS, cpu_cores=0.5, memory_bytes=1 << 30),
        output=training_pb2.Output(discard=True),
    )
    if kind.own_data:
        made.data.path = str(folder / "samples.npz")
    else:
        made.data.builtin, made.data.holdout = "digits", 0.2
    if kind.federated:
        made.strategy = training_pb2.STRATEGY_FEDERATED if choice == FEDERATED else training_pb2.STRATEGY_AUTO
        made.federated.clients, made.federated.min_clients, made.federated.local_epochs = WORKERS, WORKERS, 1
        made.data.partition.kind = "iid"
    return made


def write_samples(folder: Path) -> None:
    """The larger set, which lies on every node under one path: labels of random points by a random plane each."""
    random = np.random.default_rng(1)
    x = random.standard_normal((_SAMPLES, _WIDTH), dtype=np.float32)
    planes = random.standard_normal((_WIDTH, _CLASSES), dtype=np.float32)
    np.savez(folder / "samples.npz", x=x, y=(x @ planes).argmax(1))

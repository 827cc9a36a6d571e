"""What a worker has and does before it meets the others: most of the time of a start."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aimesh.training.v1 import training_pb2
from training.building import build
from training.data.builtin import builtin
from training.process import Process
from training.rendezvous import open_store
from training.run.engine import Engine, engine_for
from training.tasks import task_named
from training.trainer import Entry


@dataclass(frozen=True)
class Ready:
    """What a worker has before it meets the others."""

    entry: Entry
    engine: Engine
    store: Any = None
    """Of rank 0: where the workers meet, as long as this lives."""


def make_ready(process: Process) -> Ready:
    """The user's code with its data, and every module that the strategy needs."""
    task, folder = process.task, process.folder
    preload(task)
    process.seen("loading the trainer and its data")
    ready = Ready(build(task.spec, folder.root), engine_for(task.plan.strategy, task.plan))
    if task.rank or len(task.workers) < 2 or task.go:
        return ready
    store, port = open_store(task.workers[0].address or "127.0.0.1")
    process.events.port(port)
    return replace(ready, store=store)


def preload(task: training_pb2.TrainingTask) -> None:
    """Imports what a worker of this task needs, of torch also what it would import at the first step.

    But for the job's own code: that may do anything. Nothing here starts a thread or asks for a GPU: workers are
    forked from a process that has done this.
    """
    import torch._dynamo  # noqa: F401

    if task.plan.strategy == training_pb2.STRATEGY_FEDERATED:
        import training.federated.client
    else:
        import training.checkpoint.loader
        import training.checkpoint.writer
        import training.run.loop  # noqa: F401

        engine_for(task.plan.strategy, task.plan)
    if task.spec.task:
        task_named(task.spec.task)
    if task.spec.data.builtin:
        builtin(task.spec.data.builtin)


def settle(threads: int) -> None:
    """Gives a process that was forked draws of its own, and so many threads to compute with.

    Python's own draws differ after a fork anyway, and torch's begin with the same seed in every process. OpenMP and
    NumPy's OpenBLAS have read their variables long ago, in the process that was forked.
    """
    np.random.seed()
    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):  # comes with scikit-learn
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threadpool_limits(threads, user_api="blas")

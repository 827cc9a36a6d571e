"""What is done before a worker's own work: by the process that it is forked from, or by itself."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from aimesh.training.v1 import training_pb2
from training.data.builtin import builtin
from training.run.engine import engine_for
from training.tasks import task_named


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

        engine_for(task.plan.strategy, task.plan, len(task.workers))
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

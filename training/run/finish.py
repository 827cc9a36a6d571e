"""The end of a job, on rank 0: what the held-out samples say of the model, and its export."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import nn

from training.process import Process
from training.run.course import Course, on_device
from training.run.export import export
from training.run.group import Group
from training.trainer import Entry

_EVALUATION_BATCH = 256


def results(process: Process, entry: Entry, course: Course, model: nn.Module, group: Group) -> dict[str, float]:
    """Evaluates where samples were held out, and writes export/ unless the result is discarded.

    Raises InvalidInputError when the model cannot be exported.
    """
    process.seen("evaluating")
    measured = evaluate(entry, course.kept, model.to(group.device), group, process)
    if process.task.spec.output.discard:
        return measured
    process.seen("exporting the model")
    example: Any = course.learn.batch(np.arange(2) % len(course.learn))
    export(entry, model, example, process.folder.export)
    return measured


def evaluate(
    entry: Entry, kept: Any, model: nn.Module, group: Group, process: Process | None = None
) -> dict[str, float]:
    """Means over held-out samples by name, weighted by the size of each batch; nothing when there are none."""
    sums: dict[str, float] = defaultdict(float)
    model.eval()
    with torch.no_grad():
        for start in range(0, len(kept), _EVALUATION_BATCH):
            indices = np.arange(start, min(start + _EVALUATION_BATCH, len(kept)))
            for name, value in entry.evaluate(model, on_device(kept.batch(indices), group)).items():
                sums[name] += value * len(indices)
            if process is not None:
                process.seen()
    return {name: total / len(kept) for name, total in sums.items()}

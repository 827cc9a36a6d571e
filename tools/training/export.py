"""A job's measured points for programs: CSV, a line a step, and JSON. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from aimesh.training.v1 import training_pb2
from tools.training.status import moment, number, numbers, recorded

COLUMNS = ("step", "attempt", "at", "loss", "step_s")


def to_csv(points: Sequence[training_pb2.MetricPoint]) -> str:
    """The columns above, then every other value that was ever measured, by name; empty where it was not."""
    names = sorted({name for point in points for name in point.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *names])
    for point in points:
        known = [repr(point.values[name]) if name in point.values else "" for name in names]
        row = [point.step, point.attempt, moment(point.at) or "", repr(point.loss), repr(point.step_s)]
        writer.writerow([*row, *known])
    return text.getvalue()


def results_json(job: training_pb2.Job, points: Sequence[training_pb2.MetricPoint]) -> dict[str, Any]:
    """Results and points as plain values; what is not finite is None."""
    return {
        "job": job.id,
        "model": recorded(job),
        "error": job.error,
        "results": numbers(job.results),
        "points": [
            {
                "step": point.step,
                "attempt": point.attempt,
                "at": moment(point.at),
                "loss": number(point.loss),
                "step_s": number(point.step_s),
                **numbers(point.values),
            }
            for point in points
        ],
    }

"""A trial's course: what its job has measured at each part of the way, and what became of it at its end. Pure.

Trials differ in their number of steps, and a watch shows some of the points: so what is compared among trials is the
mean over each twentieth of a job, not the value at a step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from aimesh.training.v1 import training_pb2
from tools.training.view import value_of

PARTS = 20
"""Parts of a job after each of which a trial may be pruned."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    state: Literal["complete", "pruned", "fail"]
    value: float | None = None
    error: str = ""


def parts(points: Iterable[training_pb2.MetricPoint], steps: int, name: str) -> dict[int, float]:
    """The mean of a value over each part of the job that is over, by the part's number from 1 to PARTS.

    A part is over once a point of a later one is there; the last one at the job's last step. `steps` are all of the
    job; values that are not finite count as they are, since a loss that diverges is worth knowing.
    """
    if not steps:
        return {}
    sums: dict[int, list[float]] = defaultdict(list)
    last = 0
    for point in points:
        last = max(last, point.step)
        value = value_of(point, name)
        if value is not None and point.step:
            sums[part_of(point.step, steps)].append(value)
    over = PARTS if last >= steps else part_of(last, steps) - 1 if last else 0
    return {part: sum(values) / len(values) for part, values in sorted(sums.items()) if part <= over}


def part_of(step: int, steps: int) -> int:
    """The part of a job in which a step is: 1 for the first steps, PARTS for the last."""
    return min(PARTS, max(1, math.ceil(step * PARTS / steps)))


def outcome(job: training_pb2.Job, metric: str, *, pruned: bool) -> Outcome:
    """What an ended job makes of its trial. A job that had succeeded before it could be cancelled counts in full."""
    if job.state != training_pb2.JOB_STATE_SUCCEEDED:
        return Outcome("pruned") if pruned else Outcome("fail", error=job.error or job.reason or "no reason was given")
    if metric not in job.results:
        known = ", ".join(sorted(job.results)) or "nothing"
        return Outcome("fail", error=f"the job measured no {metric!r}; it measured {known}")
    value = job.results[metric]
    if not math.isfinite(value):
        return Outcome("fail", error=f"{metric} is {value}")
    return Outcome("complete", value)

"""How a job goes on at this moment, from what its agents report and measure. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.loads import ByNode
from coordinator.state import State
from coordinator.training.lessons import SPEED
from coordinator.training.orders import statuses_of
from coordinator.training.record import attempting, is_federated, is_over
from coordinator.training.slowness import Slowness

MOST_POINTS = 200


def progress_of(
    state: State,
    job: training_pb2.Job,
    loads: ByNode,
    points: Sequence[training_pb2.MetricPoint] = (),
    slowness: Slowness | None = None,
) -> training_pb2.JobProgress:
    """A job's progress. `points` are all that rank 0 has measured, oldest first; `slowness` remembers earlier looks."""
    workers = _workers(state, job, loads, slowness or Slowness()) if job.attempt.number else []
    running = [worker.progress for worker in workers if worker.HasField("progress")]
    ahead = [each for each in running if each.rank == 0 or not is_federated(job)]  # clients are in the next round
    known = [point for point in (*points, *(each.point for each in ahead)) if _is_measured(point)]
    last = max(known, key=lambda point: (point.attempt, point.step), default=training_pb2.MetricPoint())
    reached = max((each.point.step for each in ahead), default=0)
    made = training_pb2.JobProgress(
        step=max(reached, job.attempt.from_step) if attempting(job) else max(job.step, job.attempt.from_step),
        steps=job.plan.steps,
        loss=last.loss,
        samples_per_s=_speed(job, running, points, last) if attempting(job) else job.results.get(SPEED, 0.0),
        step_s=last.step_s,
        workers=workers,
        points=thinned(points),
    )
    if not is_over(job) and made.steps > made.step:
        made.eta_s = (made.steps - made.step) * _pace_s(points, last)
    return made


def curve(points: Iterable[training_pb2.MetricPoint]) -> list[training_pb2.MetricPoint]:
    """The points that count, by step: those after which an attempt was lost were made again by a later one."""
    by_attempt: dict[int, dict[int, training_pb2.MetricPoint]] = {}
    for point in points:
        by_attempt.setdefault(point.attempt, {})[point.step] = point
    found: list[training_pb2.MetricPoint] = []
    first: int | None = None
    for attempt in sorted(by_attempt, reverse=True):
        kept = [point for step, point in by_attempt[attempt].items() if first is None or step < first]
        found += kept
        first = min([*(point.step for point in kept), *(() if first is None else (first,))], default=first)
    return sorted(found, key=lambda point: point.step)


def thinned(points: Sequence[training_pb2.MetricPoint], most: int = MOST_POINTS) -> list[training_pb2.MetricPoint]:
    """At most so many of them, evenly; the first and the last are among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _is_measured(point: training_pb2.MetricPoint) -> bool:
    """Whether a step was made: a worker that has just gone on from a checkpoint has its number, and nothing else."""
    return point.step > 0 and (point.step_s > 0 or point.loss != 0 or bool(point.values))


def _workers(
    state: State, job: training_pb2.Job, loads: ByNode, slowness: Slowness
) -> list[training_pb2.WorkerProgress]:
    statuses = statuses_of(state, job) if attempting(job) else {}
    made = []
    for worker in job.attempt.workers:
        shown = training_pb2.WorkerProgress(worker=worker)
        if (status := statuses.get(worker.rank)) is not None:
            shown.pid, shown.state, shown.message = status.pid, status.state, status.message
        for task in loads.get(worker.node, membership_pb2.Load()).tasks if attempting(job) else ():
            if (task.job, task.attempt, task.rank) == (job.id, job.attempt.number, worker.rank):
                shown.progress.CopyFrom(task)
                shown.progress.point.attempt = task.attempt
                shown.message = shown.message or task.message
        made.append(shown)
    found = slowness.stragglers(job.id, job.attempt.number, [_own_s(each) for each in made])
    for shown, times in zip(made, found, strict=True):
        if times:
            shown.straggler = True
            shown.message = shown.message or f"it takes {times:.1f} times as long as the others for its share"
    return made


def _own_s(shown: training_pb2.WorkerProgress) -> float:
    """What a worker itself computes at in a step, up to a factor that is the same for all; 0 for unknown.

    A step ends for all at once, so its length says nothing of one of them: its samples a second do, which its process
    averages over the last steps. Its part of a batch follows the speed that it was given at the attempt's begin: the
    same for all when that is 0.
    """
    speed = shown.progress.samples_per_s
    return (shown.worker.speed or 1.0) / speed if speed > 0 else 0.0


def _speed(
    job: training_pb2.Job,
    running: Sequence[training_pb2.TaskProgress],
    points: Sequence[training_pb2.MetricPoint],
    last: training_pb2.MetricPoint,
) -> float:
    """Samples a second of all together: by the length of a step; clients of federated jobs go each at its own pace."""
    pace = _pace_s(points, last)
    if is_federated(job) or not pace:
        return sum(each.samples_per_s for each in running)
    return job.spec.batch_size / pace


def _pace_s(points: Sequence[training_pb2.MetricPoint], last: training_pb2.MetricPoint) -> float:
    """Seconds of a step: of the last few in the median, since single ones vary."""
    recent = [point.step_s for point in points[-20:] if point.step_s > 0]
    return statistics.median(recent) if recent else last.step_s

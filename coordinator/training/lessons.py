"""What a job teaches of its strategy when it is over, and of the network while it runs. Pure."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from coordinator.settings import LessonSettings
from coordinator.state import State
from coordinator.training.links import with_link
from coordinator.training.record import SUCCEEDED, is_federated, is_over
from meshkit.qtable import learn

SPEED = "samples_per_s"
"""The result that says how fast all workers of the last attempt were together."""


def taught(
    state: State, made: training_pb2.Job, least: LessonSettings, *, lacked: bool
) -> training_pb2.StrategyTable | None:
    """The table after a job's record has become `made`, as written beside it; None when it stays as it is.

    `lacked` says that the job failed for want of resources.
    """
    table = with_link(state, state.jobs[made.id], state.strategies)
    learned = lesson(made, table or state.strategies, least, lacked=lacked) if is_over(made) else None
    return learned or table


def lesson(
    job: training_pb2.Job, learned: training_pb2.StrategyTable, least: LessonSettings, *, lacked: bool
) -> training_pb2.StrategyTable | None:
    """The table after a job that is over; None when it teaches nothing.

    That is so where the speed was not measured or its last attempt was short, and where the code failed. A job that
    names its strategy teaches as another does: Q-learning learns an action's value from whoever took it.
    """
    speed, workers = job.results.get(SPEED, 0.0), len(job.attempt.workers)
    measured = job.state == SUCCEEDED and speed > 0 and workers and _is_long(job, speed, least)
    if not job.plan.situation or not (lacked or measured):
        return None
    table = learn(learned, job.plan, 0.0 if lacked else speed, max(1, workers))
    return None if table is learned else table


def _is_long(job: training_pb2.Job, speed: float, least: LessonSettings) -> bool:
    """Whether the attempt that measured the speed went on for long enough without a loss in between.

    Rounds of a federated job count as the steps that their clients make, which nobody counts: by time alone. The time
    follows from the speed, since packing the result takes as long as it takes.
    """
    steps = job.step - job.attempt.from_step
    if is_federated(job):
        return (job.ended_at.ToNanoseconds() - job.attempt.began_at.ToNanoseconds()) / 1e9 >= least.lesson_s
    return steps >= least.lesson_steps and steps * (job.spec.batch_size or 32) / speed >= least.lesson_s

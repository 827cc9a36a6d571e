"""What a finished job teaches of its strategy. Pure."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from coordinator.training.record import SUCCEEDED, is_federated
from meshkit.qtable import learn

SPEED = "samples_per_s"
"""The result that says how fast all workers of the last attempt were together."""
LEAST_STEPS = 200
LEAST_S = 20.0
"""Steps that the last attempt must have made, and seconds that it must have taken: what starts and ends a job weighs
too much in the speed of a shorter one."""


def lesson(
    job: training_pb2.Job, learned: training_pb2.StrategyTable, *, lacked: bool
) -> training_pb2.StrategyTable | None:
    """The table after a job that is over; None when it teaches nothing.

    That is so where the user named the strategy, where the speed was not measured or its last attempt was short, and
    where the code failed. `lacked` says that it failed for want of resources.
    """
    speed, workers = job.results.get(SPEED, 0.0), len(job.attempt.workers)
    measured = job.state == SUCCEEDED and speed > 0 and workers and _is_long(job, speed)
    if not job.plan.situation or not (lacked or measured):
        return None
    table = learn(learned, job.plan, 0.0 if lacked else speed, max(1, workers))
    return None if table is learned else table


def _is_long(job: training_pb2.Job, speed: float) -> bool:
    """Whether the attempt that measured the speed went on for long enough without a loss in between.

    Rounds of a federated job count as the steps that their clients make, which nobody counts: by time alone. The time
    follows from the speed, since packing the result takes as long as it takes.
    """
    steps = job.step - job.attempt.from_step
    if is_federated(job):
        return (job.ended_at.ToNanoseconds() - job.attempt.began_at.ToNanoseconds()) / 1e9 >= LEAST_S
    return steps >= LEAST_STEPS and steps * (job.spec.batch_size or 32) / speed >= LEAST_S

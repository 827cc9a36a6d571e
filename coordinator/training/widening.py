"""By which of its plans a job's next attempt begins: the widest that there are nodes for. Pure.

A job is planned for the nodes that are free at that moment; more may come. What it would be with more of them is in its
plan, from the same analysis (training/strategy/growth.py), so nothing has to be analysed again.
"""

from __future__ import annotations

from collections.abc import Callable

from aimesh.training.v1 import training_pb2
from coordinator.training.record import copy
from coordinator.training.schedule import Offer


def widest(job: training_pb2.Job, offer: Callable[[training_pb2.Job], Offer]) -> tuple[training_pb2.Job, Offer]:
    """The job with the last of its plans that there are nodes for, and these; as it is, with what it is offered then,
    when there are too few for all others."""
    for place in reversed(range(len(job.plan.wider))):
        made = widened(job, place)
        found = offer(made)
        if len(found.workers) >= job.plan.wider[place].from_workers:
            return made, found
    return job, offer(job)


def widened(job: training_pb2.Job, place: int) -> training_pb2.Job:
    """A copy with a wider plan in place of its plan, which keeps what both have in common, and those wider still."""
    made, chosen = copy(job), job.plan.wider[place]
    for own in ("wider", "options", "computed", "counts", "explored"):
        made.plan.ClearField(own)
    made.plan.MergeFrom(chosen)
    made.plan.from_workers = job.plan.from_workers  # with fewer than that it cannot be trained
    made.plan.wider.extend(job.plan.wider[place + 1 :])
    return made

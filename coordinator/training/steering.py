"""What people do to a job: pause, resume, cancel, remove. Pure; refuses what its state does not allow."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from coordinator.order import Order
from coordinator.training.attempts import released
from coordinator.training.record import (
    CANCEL,
    FINISHING,
    PAUSE,
    PAUSED,
    QUEUED,
    busy,
    copy,
    entered,
    is_over,
    phase_word,
    word,
)
from meshkit.errors import PreconditionError


def paused(job: training_pb2.Job, order: Order) -> training_pb2.Job:
    """To be paused, or paused at once when no node does anything for it. The same again changes nothing.

    Raises PreconditionError when it has ended or is about to: its result is being packed, or it is being cancelled.
    """
    if job.state == PAUSED or job.order == PAUSE:
        return job
    if is_over(job) or job.phase == FINISHING or job.order == CANCEL:
        raise _not(job, "paused")
    return _ordered(job, PAUSE, order.said("paused"), order.now_ns)


def resumed(job: training_pb2.Job, order: Order) -> training_pb2.Job:
    """Waiting for its turn again, on any node. Raises PreconditionError unless it is paused."""
    if job.state != PAUSED:
        raise _not(job, "resumed")
    made = entered(job, QUEUED, order.now_ns, order.said("resumed"))
    made.order = training_pb2.JOB_ORDER_UNSPECIFIED
    made.unfit.clear()
    return made


def cancelled(job: training_pb2.Job, order: Order) -> training_pb2.Job:
    """To be ended for good, or ended at once when no node does anything for it.

    Raises PreconditionError when it has ended.
    """
    if is_over(job):
        raise _not(job, "cancelled")
    if job.order == CANCEL:
        return job
    return _ordered(job, CANCEL, order.said("cancelled"), order.now_ns)


def check_removable(job: training_pb2.Job) -> None:
    """Raises PreconditionError while it has not ended."""
    if not is_over(job):
        raise _not(job, "removed", f"cancel it first: aimesh train cancel {job.id}")


def _ordered(
    job: training_pb2.Job, order: training_pb2.JobOrder.ValueType, reason: str, now_ns: int
) -> training_pb2.Job:
    made = copy(job)
    made.order, made.reason = order, reason
    return made if busy(job) else released(made, now_ns)


def _not(job: training_pb2.Job, what: str, hint: str = "") -> PreconditionError:
    at = phase_word(job.phase) if busy(job) else word(job.state)
    going = ", and is being cancelled," if job.order == CANCEL else ""
    return PreconditionError(
        f"job {job.id} is {at}{going} and cannot be {what}",
        hint=hint or f"see: aimesh train status {job.id}",
        reason="JOB_STATE",
    )

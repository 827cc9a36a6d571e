"""From one attempt of a job to the next: how it begins, stops, is brought back, and gives its nodes free. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aimesh.training.v1 import training_pb2
from coordinator.training.checkpoints import newest, nodes_of, writers
from coordinator.training.losses import Loss
from coordinator.training.record import (
    CANCEL,
    FAILED,
    FINISHING,
    NONE,
    PAUSED,
    PREPARING,
    QUEUED,
    STOPPING,
    SUCCEEDED,
    attempting,
    copy,
    duration,
    ended,
    entered,
    failed,
    ran_ns,
    remembered,
    timestamp,
)
from coordinator.training.schedule import Offer
from coordinator.training.seen import Move, Seen
from coordinator.training.widening import widest

MOST_UNFIT = 32
"""Nodes that a job leaves out: its record has them all."""
MOST_SAID = 500
"""Characters of what was wrong with one."""


def begin(job: training_pb2.Job, found: Offer, seen: Seen, reason: str) -> training_pb2.Job:
    """The record of a job with its next attempt, which nobody trains in before all are ready."""
    made = entered(job, PREPARING, seen.now_ns, reason)
    made.ran.CopyFrom(duration(ran_ns(job, seen.now_ns)))
    if seen.resume_lost and made.HasField("checkpoint"):
        made.reason = f"starts anew: nobody holds its checkpoint of step {made.checkpoint.step} any more"
        made.lost_steps += made.checkpoint.step
        made.ClearField("checkpoint")
    made.attempt.CopyFrom(
        training_pb2.Attempt(
            number=job.attempt.number + 1,
            workers=found.workers,
            from_step=made.checkpoint.step,
            began_at=timestamp(seen.now_ns),
            resume=made.checkpoint if made.HasField("checkpoint") else None,
        )
    )
    for worker in made.attempt.workers:
        worker.newcomer = job.HasField("started_at") and worker.node not in job.trained_on
    made.nodes[:] = remembered(nodes_of(made), list(job.nodes))
    return made


def stopping(job: training_pb2.Job, now_ns: int, reason: str) -> training_pb2.Job:
    """The record of a job whose workers are to write a checkpoint and stop."""
    made = entered(job, STOPPING, now_ns, reason)
    made.attempt.stop = True
    return made


def with_newest(job: training_pb2.Job, seen: Seen) -> training_pb2.Job:
    """A copy at the end of an attempt: with the newest checkpoint that there is, and what comes after it lost.

    Here one holder of each part is enough: the nodes of the next attempt will hold it all.
    """
    made = copy(job)
    if (found := newest(job, seen.statuses, seen.held, 1)) is not None:
        made.checkpoint.CopyFrom(found)
    made.step = reached(job, seen)
    return made


def reached(job: training_pb2.Job, seen: Seen) -> int:
    """The last step that is known to have been made in a job's newest attempt.

    Heartbeats lag behind: a worker that has ended says how far it came, and who has written a checkpoint made its step.
    A federated job's clients say which round they trained in, and it may be under way.
    """
    known = [job.attempt.from_step, seen.step]
    for status in (seen.statuses[rank] for rank in writers(job) if rank in seen.statuses):
        known += [status.step, *(each.step for each in status.checkpoints if each.attempt == job.attempt.number)]
    return max([*known, job.step] if job.phase == FINISHING else known)  # it was written when its workers were done


def overtaken(job: training_pb2.Job, points: Iterable[training_pb2.MetricPoint]) -> training_pb2.Job | None:
    """A job's record where the attempt before made more steps than was known when it ended; None where it did not.

    Rank 0's points tell, which are asked for when the next attempt is on its way: nobody waits for them.
    """
    before = job.attempt.number - 1
    made = max((point.step for point in points if point.attempt == before), default=0)
    if not attempting(job) or made <= max(job.step, job.attempt.from_step):
        return None
    found, start = copy(job), job.attempt.from_step
    found.lost_steps += made - max(job.step, start)
    found.step = made
    found.reason = job.reason.replace(_again(job.step - start), _again(made - start))
    return found


def _again(steps: int) -> str:
    return f"steps made again: {max(0, steps)}"


def brought_back(job: training_pb2.Job, seen: Seen, loss: Loss) -> Move:
    """The record of a job that was lost: with its next attempt, or given up."""
    made = with_newest(job, seen) if attempting(job) else copy(job)
    if not loss.may_retry and job.order != CANCEL:
        return Move(failed(made, seen.now_ns, loss.error))
    if job.order:
        return Move(released(made, seen.now_ns))
    again = max(0, made.step - made.checkpoint.step) if attempting(job) else 0
    made.failures += 1
    budget = job.spec.restarts.failures if job.spec.restarts.HasField("failures") else 3
    if made.failures > budget:
        made.failures = budget
        error = f"{loss.error}; it was brought back {budget} times before, as often as it may be"
        return Move(failed(made, seen.now_ns, error), lacked=True)
    made.lost_steps += again  # of a job that is given up they are not made again
    reason = f"goes on from step {made.checkpoint.step} after {loss.error}; {_again(again)}"
    if not attempting(job):
        return Move(entered(made, QUEUED, seen.now_ns, loss.error))
    made, found = widest(made, seen.offer)
    if found.workers:
        return Move(begin(made, found, seen, reason))
    return Move(entered(made, QUEUED, seen.now_ns, f"{loss.error}; {found.reason}"))


def without(job: training_pb2.Job, seen: Seen, losses: Mapping[str, Loss]) -> training_pb2.Job | None:
    """The record of a job that goes on without nodes that had just joined it; `losses` says why, by node.

    It trained before they came, so they cost it no restart. None when it has no other nodes and another try on these
    could go better, or when it has left out as many as it may: then it is a loss as any.
    """
    made = copy(job)
    made.unfit.update({node: loss.error[:MOST_SAID] for node, loss in losses.items()})
    if len(made.unfit) > MOST_UNFIT:
        return None
    reason = f"goes on without {'; '.join(loss.error for loss in losses.values())}"
    made, found = widest(made, seen.offer)
    if found.workers:
        return begin(made, found, seen, reason)
    if any(loss.may_retry for loss in losses.values()):
        return None
    return entered(made, QUEUED, seen.now_ns, f"{reason}; {found.reason}")


def gives_way(job: training_pb2.Job, seen: Seen, why: str) -> training_pb2.Job:
    """It gives its nodes to others: with a checkpoint when it trains, at once when it does not yet."""
    made = copy(job)
    made.preemptions += 1
    restarts = job.spec.restarts
    if restarts.HasField("preemptions") and made.preemptions > restarts.preemptions:
        return failed(job, seen.now_ns, f"it had to give its nodes up {made.preemptions} times; the last time: {why}")
    if job.phase == PREPARING:
        return entered(made, QUEUED, seen.now_ns, why)
    return stopping(made, seen.now_ns, why)


def succeeded(job: training_pb2.Job, now_ns: int) -> training_pb2.Job:
    """The record of a job whose result is there."""
    said = f"recorded as {job.model}" if job.model else "its result is not kept"
    return ended(job, SUCCEEDED, now_ns, f"trained {job.step} steps; {said}")


def released(job: training_pb2.Job, now_ns: int) -> training_pb2.Job:
    """The record of a job whose order is carried out: it holds no node any more."""
    if job.order == CANCEL:
        return ended(job, FAILED, now_ns, job.reason, job.reason)
    made = entered(job, NONE, now_ns, job.reason)
    made.state, made.order = PAUSED, training_pb2.JOB_ORDER_UNSPECIFIED
    return made

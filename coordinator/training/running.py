"""The phases of a job whose workers run: they train, or write a checkpoint and stop. Pure."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from coordinator.training.attempts import begin, brought_back, gives_way, released, stopping, succeeded, with_newest
from coordinator.training.checkpoints import copies_needed, newest
from coordinator.training.losses import FAILED, STOPPED, SUCCEEDED, fatal_of, left, loss_of
from coordinator.training.record import (
    CANCEL,
    FINISHING,
    QUEUED,
    attempt_ns,
    copy,
    entered,
    failed,
    in_phase_s,
    is_federated,
    ran_ns,
    seconds,
    strategy_word,
)
from coordinator.training.seen import Move, Seen
from coordinator.training.widening import widest

STOP_MOST_S = 180.0
"""How long workers may take to write a checkpoint and stop, and their agents to copy it: agents end them sooner."""
GROW_REST_S = 5.0
"""An attempt younger than this is not ended for more workers: nodes may come one after the other."""
_GROWS = "goes on with"
_S = 10**9
_ENDED = (STOPPED, SUCCEEDED, FAILED)


def training(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    """Its workers train, until the result, a loss, an order or others that need the nodes."""
    if (fatal := fatal_of(job, seen.statuses)) is not None and job.order != CANCEL:
        return brought_back(job, seen, fatal)
    if job.order:
        return stopping(job, seen.now_ns, job.reason)
    if _has_result(seen):
        return _finished(job, seen)
    if (loss := loss_of(job, seen.statuses, seen.away, seen.now_ns)) is not None:
        return brought_back(job, seen, loss)
    if why := _out_of_time(job, seen):
        return failed(with_newest(job, seen), seen.now_ns, why)
    if seen.evict or left(job, seen.statuses):
        return gives_way(job, seen, seen.evict or left(job, seen.statuses))
    whole = newest(job, seen.statuses, seen.held, copies_needed(seen.held))
    return _at_checkpoint(job, seen, whole) if whole is not None else None


def _at_checkpoint(job: training_pb2.Job, seen: Seen, whole: training_pb2.Checkpoint) -> training_pb2.Job:
    """With its new checkpoint; it stops there when nodes have come that it could use."""
    made = copy(job)
    made.checkpoint.CopyFrom(whole)
    if seen.now_ns - attempt_ns(job) < GROW_REST_S * _S:
        return made
    wide, found = widest(made, seen.offer)
    can, has = len(found.workers), len(job.attempt.workers)
    if can <= has:
        return made
    return stopping(made, seen.now_ns, _grows(job, wide, can))


def _grows(job: training_pb2.Job, wide: training_pb2.Job, workers: int) -> str:
    now, then = strategy_word(job.plan.strategy), strategy_word(wide.plan.strategy)
    other = f", {then} in place of {now}" if then != now else ""
    return f"{_GROWS} {workers} workers in place of {len(job.attempt.workers)}{other}"


def until_stopped(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    """Its workers write a checkpoint and stop; then its order is carried out, or the next attempt begins."""
    fatal = fatal_of(job, seen.statuses)
    if fatal is not None and job.order != CANCEL:
        return brought_back(job, seen, fatal)
    if _has_result(seen) and job.order != CANCEL:
        return _finished(job, seen)
    whole = newest(job, seen.statuses, seen.held, copies_needed(seen.held))
    if whole is not None:
        made = copy(job)
        made.checkpoint.CopyFrom(whole)
        return made
    late = in_phase_s(job, seen.now_ns) > STOP_MOST_S
    if not late and not all(_is_over(seen, worker.rank) for worker in job.attempt.workers):
        return None
    if not late and job.order != CANCEL and _copies_to_come(job, seen):
        return None
    made = with_newest(job, seen)
    if made.order != CANCEL:
        made.lost_steps += max(0, made.step - made.checkpoint.step)
    if made.order:
        return released(made, seen.now_ns)
    made, found = widest(made, seen.offer)
    if found.workers:
        grew = len(found.workers) > len(job.attempt.workers) or not job.reason.startswith(_GROWS)
        return begin(made, found, seen, job.reason if grew else "the nodes that it stopped for are gone")
    return entered(made, QUEUED, seen.now_ns, f"{made.reason}; {found.reason}")


def _finished(job: training_pb2.Job, seen: Seen) -> training_pb2.Job:
    """Its workers are done: the result is packed, unless nobody wants it."""
    made, last = with_newest(job, seen), seen.statuses[0]
    made.order = training_pb2.JOB_ORDER_UNSPECIFIED
    made.step = max(seen.step, last.step)
    made.results.clear()
    made.results.update(last.results)
    if job.spec.output.discard:
        return succeeded(made, seen.now_ns)
    made = entered(made, FINISHING, seen.now_ns, f"{job.attempt.workers[0].node} packs the result")
    made.model = seen.model()
    return made


def _has_result(seen: Seen) -> bool:
    """Rank 0 ends only when all that it needed of the others is there."""
    return 0 in seen.statuses and seen.statuses[0].state == SUCCEEDED


def _out_of_time(job: training_pb2.Job, seen: Seen) -> str:
    patience = seconds(job.spec.stall_timeout)
    if is_federated(job):
        patience = max(patience, 3 * seconds(job.spec.federated.round_deadline))
    if patience and min(seen.quiet_s, in_phase_s(job, seen.now_ns)) > patience:
        return f"no worker has made a step for {patience:g} s, since step {seen.step}"
    most = seconds(job.spec.max_duration)
    if most and ran_ns(job, seen.now_ns) > most * _S:
        return f"it ran longer than max_duration, {most:g} s, and is at step {seen.step}"
    return ""


def _copies_to_come(job: training_pb2.Job, seen: Seen) -> bool:
    """Whether all parts of a newer checkpoint were written, and agents that are there still copy some."""
    return newest(job, seen.statuses, seen.held, 1) is not None


def _is_over(seen: Seen, rank: int) -> bool:
    status = seen.statuses.get(rank)
    return rank in seen.away or (status is not None and status.state in _ENDED)

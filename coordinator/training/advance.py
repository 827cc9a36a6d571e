"""What becomes of a job next: a pure function of its record and of what is seen. None when it stays as it is.

One move at a time, each a record that a leader may die before or after: whoever leads next works out the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aimesh.training.v1 import training_pb2
from coordinator.training.attempts import begin, brought_back, released, stopping, with_newest
from coordinator.training.checkpoints import copies_needed, newest, writers
from coordinator.training.losses import FAILED, READY, STOPPED, SUCCEEDED, Loss, fatal_of, loss_of, where
from coordinator.training.record import (
    CANCEL,
    FINISHING,
    PAUSE,
    PAUSED,
    PLANNING,
    PREPARING,
    QUEUED,
    STOPPING,
    TRAINING,
    attempt_ns,
    copy,
    ended,
    entered,
    failed,
    is_federated,
    is_over,
    ran_ns,
    seconds,
    timestamp,
    told,
)
from coordinator.training.record import SUCCEEDED as DONE
from coordinator.training.seen import Move, Seen

PREPARE_MOST_S = 3600.0
"""How long agents may take to fetch what an attempt needs."""
PLAN_MOST_S = 900.0
STOP_MOST_S = 180.0
"""How long workers may take to write a checkpoint and stop, and their agents to copy it: agents end them sooner."""
GROW_REST_S = 5.0
"""An attempt younger than this is not ended for more workers: nodes may come one after the other."""
_S = 10**9
_ENDED = (STOPPED, SUCCEEDED, FAILED)


def advance(job: training_pb2.Job, seen: Seen) -> Move | None:
    """The next move of a job."""
    if is_over(job) or job.state == PAUSED:
        return None
    found = _STEPS[job.phase](job, seen)
    return Move(found) if isinstance(found, training_pb2.Job) else found


def succeeded(job: training_pb2.Job, now_ns: int) -> training_pb2.Job:
    """The record of a job whose result is there."""
    said = f"recorded as {job.model}" if job.model else "its result is not kept"
    return ended(job, DONE, now_ns, f"trained {job.step} steps; {said}")


def _queued(job: training_pb2.Job, seen: Seen) -> training_pb2.Job | None:
    if job.order:
        return released(job, seen.now_ns)
    found = seen.offer(job)
    if not found.workers:
        return told(job, found.reason)
    if job.HasField("plan"):
        return begin(job, found, seen, "its agents fetch what it needs")
    if seen.planned_elsewhere:
        return None
    made = entered(job, PLANNING, seen.now_ns, f"{found.workers[0].node} analyses the model and decides the strategy")
    made.attempt.CopyFrom(training_pb2.Attempt(workers=found.workers))
    return made


def _planning(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    if job.order:
        return released(job, seen.now_ns)
    status, node = seen.planning, job.attempt.workers[0].node
    if status is not None and status.state == SUCCEEDED:
        return _planned(job, seen, status.plan)
    if status is not None and status.state == FAILED:
        return brought_back(job, seen, Loss(f"planning on {node}: {status.message}", status.may_retry))
    if 0 in seen.away:
        return brought_back(job, seen, Loss(f"planning on {node}: {seen.away[0]}", may_retry=True))
    if _in_phase_s(job, seen) > PLAN_MOST_S:
        return failed(job, seen.now_ns, f"planning on {node} took longer than {PLAN_MOST_S:g} s")
    return None


def _planned(job: training_pb2.Job, seen: Seen, plan: training_pb2.JobPlan) -> training_pb2.Job:
    if plan.strategy in (training_pb2.STRATEGY_UNSPECIFIED, training_pb2.STRATEGY_AUTO):
        return failed(job, seen.now_ns, f"planning on {job.attempt.workers[0].node} came to no strategy")
    made = copy(job)
    made.plan.CopyFrom(plan)
    found = seen.offer(made)
    if found.workers:
        return begin(made, found, seen, "its agents fetch what it needs")
    return entered(made, QUEUED, seen.now_ns, found.reason)


def _preparing(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    if job.order:
        return released(job, seen.now_ns)
    if seen.late:
        first = min(seen.late, key=lambda status: status.failed_at.ToNanoseconds())
        error = f"rank {first.rank} of attempt {first.attempt}: {first.message}"
        return failed(job, seen.now_ns, error)
    if (loss := loss_of(job, seen.statuses, seen.away)) is not None:
        return brought_back(job, seen, loss)
    if seen.evict or _left(job, seen):
        return _gives_way(job, seen, seen.evict or _left(job, seen))
    waiting = [worker.rank for worker in job.attempt.workers if not _is_ready(job, seen.statuses.get(worker.rank))]
    if waiting and _in_phase_s(job, seen) > PREPARE_MOST_S:
        error = f"{where(job, waiting[0])}: it was not ready within {PREPARE_MOST_S:g} s"
        return brought_back(job, seen, Loss(error, may_retry=True))
    return None if waiting else _go(job, seen)


def _go(job: training_pb2.Job, seen: Seen) -> training_pb2.Job:
    """All agents have what they need: the workers may train."""
    made = entered(job, TRAINING, seen.now_ns, job.reason if job.failures or job.preemptions else "")
    made.attempt.go = True
    port, address = seen.statuses[0].port, job.attempt.workers[0].address
    if port:
        made.attempt.rendezvous = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if not made.HasField("started_at"):
        made.started_at.CopyFrom(timestamp(seen.now_ns))
    return made


def _training(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    if (fatal := fatal_of(job, seen.statuses)) is not None and job.order != CANCEL:
        return brought_back(job, seen, fatal)
    if job.order:
        return stopping(job, seen.now_ns, job.reason)
    if _has_result(seen):
        return _finished(job, seen)
    if (loss := loss_of(job, seen.statuses, seen.away)) is not None:
        return brought_back(job, seen, loss)
    if why := _out_of_time(job, seen):
        return failed(with_newest(job, seen), seen.now_ns, why)
    if seen.evict or _left(job, seen):
        return _gives_way(job, seen, seen.evict or _left(job, seen))
    whole = newest(job, seen.statuses, seen.held, copies_needed(seen.held))
    return _at_checkpoint(job, seen, whole) if whole is not None else None


def _at_checkpoint(job: training_pb2.Job, seen: Seen, whole: training_pb2.Checkpoint) -> training_pb2.Job:
    """With its new checkpoint; it stops there when nodes have come that it could use."""
    made = copy(job)
    made.checkpoint.CopyFrom(whole)
    if seen.now_ns - attempt_ns(job) < GROW_REST_S * _S:
        return made
    found, has = seen.offer(made).workers, len(job.attempt.workers)
    if len(found) <= has:
        return made
    return stopping(made, seen.now_ns, f"goes on with {len(found)} workers in place of {has}")


def _stopping(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
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
    late = _in_phase_s(job, seen) > STOP_MOST_S
    if not late and not all(_is_over(seen, worker.rank) for worker in job.attempt.workers):
        return None
    if not late and job.order != CANCEL and _copies_to_come(job, seen):
        return None
    made = with_newest(job, seen)
    if made.order != CANCEL:
        made.lost_steps += max(0, made.step - made.checkpoint.step)
    if made.order:
        return released(made, seen.now_ns)
    found = seen.offer(made)
    if found.workers:
        return begin(made, found, seen, made.reason)
    return entered(made, QUEUED, seen.now_ns, f"{made.reason}; {found.reason}")


def _finishing(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    if job.order == CANCEL:
        return released(job, seen.now_ns)
    if job.order == PAUSE:  # it came too late
        made = copy(job)
        made.order = training_pb2.JOB_ORDER_UNSPECIFIED
        return made
    status, node = seen.finish, job.attempt.workers[0].node
    if status is not None and status.state == FAILED:
        return brought_back(job, seen, Loss(f"packing the result on {node}: {status.message}", status.may_retry))
    if 0 in seen.away:
        return brought_back(job, seen, Loss(f"packing the result on {node}: {seen.away[0]}", may_retry=True))
    return None


_Step = Callable[[training_pb2.Job, Seen], Move | training_pb2.Job | None]
_STEPS: Mapping[int, _Step] = {
    QUEUED: _queued,
    PLANNING: _planning,
    PREPARING: _preparing,
    TRAINING: _training,
    STOPPING: _stopping,
    FINISHING: _finishing,
}


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


def _gives_way(job: training_pb2.Job, seen: Seen, why: str) -> training_pb2.Job:
    """It gives its nodes to others: with a checkpoint when it trains, at once when it does not yet."""
    made = copy(job)
    made.preemptions += 1
    restarts = job.spec.restarts
    if restarts.HasField("preemptions") and made.preemptions > restarts.preemptions:
        return failed(job, seen.now_ns, f"it had to give its nodes up {made.preemptions} times; the last time: {why}")
    if job.phase == PREPARING:
        return entered(made, QUEUED, seen.now_ns, why)
    return stopping(made, seen.now_ns, why)


def _left(job: training_pb2.Job, seen: Seen) -> str:
    """Why a worker stopped that nobody told to: its agent goes."""
    ranks = writers(job) if is_federated(job) else [worker.rank for worker in job.attempt.workers]
    stopped = [rank for rank in ranks if rank in seen.statuses and seen.statuses[rank].state == STOPPED]
    return f"{where(job, stopped[0])} has stopped: its agent goes" if stopped else ""


def _has_result(seen: Seen) -> bool:
    """Rank 0 ends only when all that it needed of the others is there."""
    return 0 in seen.statuses and seen.statuses[0].state == SUCCEEDED


def _out_of_time(job: training_pb2.Job, seen: Seen) -> str:
    patience = seconds(job.spec.stall_timeout)
    if is_federated(job):
        patience = max(patience, 3 * seconds(job.spec.federated.round_deadline))
    if patience and min(seen.quiet_s, _in_phase_s(job, seen)) > patience:
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


def _is_ready(job: training_pb2.Job, status: training_pb2.TaskStatus | None) -> bool:
    """Rank 0 also says where the workers meet, unless it is alone."""
    if status is None or status.state != READY:
        return False
    meet = status.rank == 0 and (len(job.attempt.workers) > 1 or is_federated(job))
    return bool(status.port) or not meet


def _in_phase_s(job: training_pb2.Job, seen: Seen) -> float:
    return max(0, seen.now_ns - job.phase_at.ToNanoseconds()) / _S

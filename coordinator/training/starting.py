"""The first phases of a job: it waits for nodes, is planned, and its agents fetch what they need. Pure."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from coordinator.training.attempts import begin, brought_back, gives_way, released, without
from coordinator.training.checkpoints import nodes_of
from coordinator.training.losses import FAILED, READY, SUCCEEDED, Loss, left, loss_of, strangers, where
from coordinator.training.record import (
    MOST_NODES,
    PLANNING,
    QUEUED,
    TRAINING,
    copy,
    entered,
    failed,
    in_phase_s,
    is_federated,
    remembered,
    timestamp,
    told,
)
from coordinator.training.seen import Move, Seen
from coordinator.training.widening import widest

PREPARE_MOST_S = 3600.0
"""How long agents may take to fetch what an attempt needs."""
PLAN_MOST_S = 900.0
_FETCHES = "its agents fetch what it needs"


def queued(job: training_pb2.Job, seen: Seen) -> training_pb2.Job | None:
    """A job that waits for nodes, for its planning or for its attempt."""
    if job.order:
        return released(job, seen.now_ns)
    planned, found = widest(job, seen.offer)
    if not found.workers:
        return told(job, found.reason)
    if job.HasField("plan"):
        return begin(planned, found, seen, _FETCHES)
    if seen.planned_elsewhere:
        return None
    made = entered(job, PLANNING, seen.now_ns, f"{found.workers[0].node} analyses the model and decides the strategy")
    made.attempt.CopyFrom(training_pb2.Attempt(workers=found.workers))
    return made


def planning(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    """One node decides how the job is shared out."""
    if job.order:
        return released(job, seen.now_ns)
    status, node = seen.planning, job.attempt.workers[0].node
    if status is not None and status.state == SUCCEEDED:
        return _planned(job, seen, status.plan)
    if status is not None and status.state == FAILED:
        return brought_back(job, seen, Loss(f"planning on {node}: {status.message}", status.may_retry))
    if 0 in seen.away:
        return brought_back(job, seen, Loss(f"planning on {node}: {seen.away[0]}", may_retry=True))
    if in_phase_s(job, seen.now_ns) > PLAN_MOST_S:
        return failed(job, seen.now_ns, f"planning on {node} took longer than {PLAN_MOST_S:g} s")
    return None


def _planned(job: training_pb2.Job, seen: Seen, plan: training_pb2.JobPlan) -> training_pb2.Job:
    if plan.strategy in (training_pb2.STRATEGY_UNSPECIFIED, training_pb2.STRATEGY_AUTO):
        return failed(job, seen.now_ns, f"planning on {job.attempt.workers[0].node} came to no strategy")
    made = copy(job)
    made.plan.CopyFrom(plan)
    made, found = widest(made, seen.offer)
    if found.workers:
        return begin(made, found, seen, _FETCHES)
    return entered(made, QUEUED, seen.now_ns, found.reason)


def preparing(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    """Agents fetch what its attempt needs; all or none go on."""
    if job.order:
        return released(job, seen.now_ns)
    if seen.late:
        first = min(seen.late, key=lambda status: status.failed_at.ToNanoseconds())
        error = f"rank {first.rank} of attempt {first.attempt}: {first.message}"
        return failed(job, seen.now_ns, error)
    joined = strangers(job, seen.statuses, seen.away)
    if joined and (made := without(job, seen, joined)) is not None:
        return made
    if (loss := loss_of(job, seen.statuses, seen.away, seen.now_ns)) is not None:
        return brought_back(job, seen, loss)
    if seen.evict or left(job, seen.statuses):
        return gives_way(job, seen, seen.evict or left(job, seen.statuses))
    waiting = [worker.rank for worker in job.attempt.workers if not _is_ready(job, seen.statuses.get(worker.rank))]
    if waiting and in_phase_s(job, seen.now_ns) > PREPARE_MOST_S:
        error = f"{where(job, waiting[0])}: it was not ready within {PREPARE_MOST_S:g} s"
        return brought_back(job, seen, Loss(error, may_retry=True))
    return None if waiting else _go(job, seen)


def _go(job: training_pb2.Job, seen: Seen) -> training_pb2.Job:
    """All agents have what they need: the workers may train."""
    made = entered(job, TRAINING, seen.now_ns, "" if job.reason == _FETCHES else job.reason)
    made.attempt.go = True
    port, address = seen.statuses[0].port, job.attempt.workers[0].address
    if port:
        made.attempt.rendezvous = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if not made.HasField("started_at"):
        made.started_at.CopyFrom(timestamp(seen.now_ns))
    here = nodes_of(made)
    made.trained_on[:] = remembered(here, list(made.trained_on), at_most=max(MOST_NODES, len(here)))
    return made


def _is_ready(job: training_pb2.Job, status: training_pb2.TaskStatus | None) -> bool:
    """Rank 0 also says where the workers meet, unless it is alone."""
    if status is None or status.state != READY:
        return False
    meet = status.rank == 0 and (len(job.attempt.workers) > 1 or is_federated(job))
    return bool(status.port) or not meet

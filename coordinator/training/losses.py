"""What ends an attempt early: which worker failed first, and whether another attempt could go better. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aimesh.training.v1 import training_pb2
from coordinator.training.checkpoints import Statuses, writers
from coordinator.training.record import PREPARING, is_federated

READY = training_pb2.TASK_STATE_READY
RUNNING = training_pb2.TASK_STATE_RUNNING
STOPPED = training_pb2.TASK_STATE_STOPPED
SUCCEEDED = training_pb2.TASK_STATE_SUCCEEDED
FAILED = training_pb2.TASK_STATE_FAILED
LOST_ANOTHER = "another worker was lost"
"""In what a worker says that ends for the loss of another: training/run/reporting.py."""
CAUSE_S = 0.3
"""So long is waited for that other one's end: its agent says it a moment after those who lost it."""


@dataclass(frozen=True)
class Loss:
    """Why an attempt is over."""

    error: str
    may_retry: bool


def loss_of(job: training_pb2.Job, statuses: Statuses, away: Mapping[int, str], now_ns: int) -> Loss | None:
    """The cause of an attempt's end; None while it can go on, and for a moment while only its consequences are known.

    An error of the code counts before what was lost, and that before what others say who lost it; of several the
    first by time. `away` says why ranks are lost of which no agent speaks. A federated job that trains goes on without
    clients as long as enough are left.
    """
    if (fatal := fatal_of(job, statuses)) is not None:
        return fatal
    counted = {worker.rank for worker in job.attempt.workers}
    if is_federated(job) and job.phase != PREPARING:
        counted = {0} if _clients_left(job, statuses, away) else counted
    failures = [each for each in _failed(statuses) if each.rank in counted]
    causes = [each for each in failures if LOST_ANOTHER not in each.message]
    if failures and not causes and len(failures) < len(counted) and not away and _just_now(failures[0], now_ns):
        return None
    if failures:
        return Loss(said(job, (causes or failures)[0]), may_retry=True)
    for rank in sorted(counted & away.keys()):
        return Loss(f"{where(job, rank)}: {away[rank]}", may_retry=True)
    return None


def fatal_of(job: training_pb2.Job, statuses: Statuses) -> Loss | None:
    """The first error that no other try could mend."""
    fatal = [each for each in _failed(statuses) if not each.may_retry]
    if is_federated(job) and job.phase != PREPARING and 0 not in {each.rank for each in fatal}:
        fatal = fatal if len(fatal) > _clients_to_spare(job) else []
    return Loss(said(job, fatal[0]), may_retry=False) if fatal else None


def strangers(job: training_pb2.Job, statuses: Statuses, away: Mapping[int, str]) -> dict[str, Loss]:
    """Why an attempt is not got ready, by node, where only such nodes are to blame on which the job never was ready.

    None when one is lost on which it was: then it is the job, or a loss as any.
    """
    lost = {rank: Loss(f"{where(job, rank)}: {why}", may_retry=True) for rank, why in away.items()}
    lost |= {each.rank: Loss(said(job, each), each.may_retry) for each in reversed(_failed(statuses))}
    workers = job.attempt.workers
    known = all(workers[rank].newcomer for rank in lost)
    return {workers[rank].node: loss for rank, loss in sorted(lost.items())} if known else {}


def left(job: training_pb2.Job, statuses: Statuses) -> str:
    """Why a worker stopped that nobody told to: its agent goes."""
    ranks = writers(job) if is_federated(job) else [worker.rank for worker in job.attempt.workers]
    stopped = [rank for rank in ranks if rank in statuses and statuses[rank].state == STOPPED]
    return f"{where(job, stopped[0])} has stopped: its agent goes" if stopped else ""


def said(job: training_pb2.Job, status: training_pb2.TaskStatus) -> str:
    """What a worker's agent says of its end, and where that was."""
    return f"{where(job, status.rank)}: {status.message or 'it failed without a word'}"


def where(job: training_pb2.Job, rank: int) -> str:
    """A rank for people."""
    return f"rank {rank} on {job.attempt.workers[rank].node}"


def _failed(statuses: Statuses) -> list[training_pb2.TaskStatus]:
    """By the time of their nodes' clocks."""
    found = [status for status in statuses.values() if status.state == FAILED]
    return sorted(found, key=lambda status: (status.failed_at.ToNanoseconds(), status.rank))


def _just_now(status: training_pb2.TaskStatus, now_ns: int) -> bool:
    """Never for longer than CAUSE_S, whatever the node's clock says."""
    return 0 <= now_ns - status.failed_at.ToNanoseconds() < CAUSE_S * 1e9


def _clients_left(job: training_pb2.Job, statuses: Statuses, away: Mapping[int, str]) -> bool:
    gone = {status.rank for status in _failed(statuses)} | away.keys()
    return len(gone - {0}) <= _clients_to_spare(job)


def _clients_to_spare(job: training_pb2.Job) -> int:
    """Workers that a federated job can be without: each holds clients_per_node clients."""
    federated = job.spec.federated
    per_node = max(1, federated.clients_per_node)
    needed = -(-max(1, federated.min_clients) // per_node)
    return max(0, len(job.attempt.workers) - needed)

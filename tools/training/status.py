"""A job for programs: what `aimesh train status --json` and `list --json` print. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import timestamp_pb2

from aimesh.training.v1 import training_pb2
from tools.cli.plain import enum_name
from tools.training.values import words

_STRATEGIES = {value: word for word, value in words(training_pb2.Strategy.DESCRIPTOR).items()}


def status_json(job: training_pb2.Job, progress: training_pb2.JobProgress) -> dict[str, Any]:
    """The job as plain values. What is not known is None."""
    return {
        "state": state_of(job),
        "step": progress.step,
        "steps": progress.steps,
        "loss": loss_of(job, progress),
        "workers": [_worker(worker) for worker in progress.workers],
        "model": recorded(job),
        "error": job.error,
        "job": job.id,
        "phase": phase_of(job),
        "reason": job.reason,
        "strategy": strategy_of(job),
        "wider": [] if job.ended_at.ToNanoseconds() else wider_of(job.plan),
        "attempt": job.attempt.number,
        "failures": job.failures,
        "preemptions": job.preemptions,
        "lost_steps": job.lost_steps,
        "checkpoint_step": job.checkpoint.step if job.HasField("checkpoint") else None,
        "samples_per_s": number(progress.samples_per_s),
        "step_s": number(progress.step_s),
        "eta_s": number(progress.eta_s) or None,
        "results": numbers(job.results),
        "submitted_by": job.submitted_by,
        "created_at": moment(job.created_at),
        "started_at": moment(job.started_at),
        "ended_at": moment(job.ended_at),
    }


def state_of(job: training_pb2.Job) -> str:
    """PENDING, RUNNING, PAUSED, SUCCEEDED or FAILED."""
    return enum_name(training_pb2.JobState.DESCRIPTOR, job.state)


def recorded(job: training_pb2.Job) -> str:
    """NAME:VERSION of the result once it is in the registry: the record has it before, while it is packed."""
    return job.model if job.state == training_pb2.JOB_STATE_SUCCEEDED else ""


def phase_of(job: training_pb2.Job) -> str:
    """queued, planning, preparing, training, stopping or finishing; empty when nothing is being done."""
    return "" if not job.phase else enum_name(training_pb2.JobPhase.DESCRIPTOR, job.phase).lower()


def strategy_of(job: training_pb2.Job) -> str:
    """The one that was chosen, or asked for while nothing is: ddp, auto ..."""
    return strategy_word(job.plan.strategy or job.spec.strategy)


def wider_of(plan: training_pb2.JobPlan) -> list[dict[str, Any]]:
    """How a job goes on once there are nodes for so many workers, the fewest first, and with how many at most."""
    return [
        {"strategy": strategy_word(each.strategy), "from_workers": each.from_workers, "workers": each.workers}
        for each in plan.wider
    ]


def said_wider(plan: training_pb2.JobPlan) -> str:
    """The same for people; empty when it stays with its strategy."""
    return ", ".join(f"{each['strategy']} once {each['from_workers']} workers have room" for each in wider_of(plan))


def strategy_word(strategy: int) -> str:
    """STRATEGY_DDP as ddp."""
    return _STRATEGIES.get(f"STRATEGY_{enum_name(training_pb2.Strategy.DESCRIPTOR, strategy)}", "auto")


def loss_of(job: training_pb2.Job, progress: training_pb2.JobProgress) -> float | None:
    """The newest loss that was measured in a step; without any, what the results say."""
    points = [*progress.points, *(worker.progress.point for worker in progress.workers)]
    measured = [point for point in points if point.step]
    if measured:
        return number(max(measured, key=lambda point: (point.attempt, point.step)).loss)
    held = [job.results[name] for name in ("train_loss", "loss") if name in job.results]
    return number(held[0]) if held else None


def numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """By name; JSON has no NaN and no infinity, which become None."""
    return {name: number(values[name]) for name in sorted(values)}


def number(value: float) -> float | None:
    """The value, or None when it is not finite."""
    return value if math.isfinite(value) else None


def moment(at: timestamp_pb2.Timestamp) -> str | None:
    """A time as JSON has it, None for one that never was."""
    return at.ToJsonString() if at.ToNanoseconds() else None


def _worker(worker: training_pb2.WorkerProgress) -> dict[str, Any]:
    return {
        "node": worker.worker.node,
        "rank": worker.worker.rank,
        "pid": worker.pid or None,
        "state": enum_name(training_pb2.TaskState.DESCRIPTOR, worker.state) if worker.state else None,
        "step": worker.progress.point.step,
        "samples_per_s": number(worker.progress.samples_per_s),
        "resident_bytes": worker.progress.resident_bytes,
        "gpu_memory_bytes": worker.progress.gpu_memory_bytes,
        "gpus": list(worker.worker.gpus),
        "straggler": worker.straggler,
        "message": worker.message,
    }

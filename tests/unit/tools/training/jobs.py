"""Jobs as a coordinator would show them, for tests of views."""

from __future__ import annotations

from collections.abc import Mapping

from aimesh.training.v1 import training_pb2

RUNNING = training_pb2.JOB_STATE_RUNNING


def made(state: training_pb2.JobState.ValueType = RUNNING, **more: object) -> training_pb2.Job:
    """A job of two workers."""
    job = training_pb2.Job(
        id="digits-abc123", state=state, plan=training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP, steps=400)
    )
    job.spec.name = "digits"
    job.attempt.number = 2
    job.MergeFrom(training_pb2.Job(**more))  # type: ignore[arg-type]
    return job


def going(steps: int = 100, loss: float = 0.5) -> training_pb2.JobProgress:
    """Its progress after so many steps; rank 1 is slow."""
    progress = training_pb2.JobProgress(step=steps, steps=400, loss=loss, samples_per_s=1234.5, step_s=0.02, eta_s=75)
    progress.points.extend(points(steps))
    if steps:
        progress.points[-1].loss = loss
    for rank in (0, 1):
        worker = progress.workers.add(pid=4000 + rank, state=training_pb2.TASK_STATE_RUNNING, straggler=rank == 1)
        worker.worker.rank, worker.worker.node = rank, f"node-{rank + 1}"
        worker.progress.point.step, worker.progress.point.loss, worker.progress.point.attempt = steps, loss, 2
        worker.progress.resident_bytes = 300 << 20
    return progress


def points(steps: int, values: Mapping[str, float] | None = None) -> list[training_pb2.MetricPoint]:
    """A falling loss; the second attempt began after step 50."""
    return [
        training_pb2.MetricPoint(
            step=step,
            loss=2.0 / step,
            step_s=0.02,
            attempt=1 if step <= 50 else 2,
            values={"accuracy": step / steps, "learning_rate": 0.1} if values is None else values,
        )
        for step in range(1, steps + 1)
    ]

"""A TrainingService whose jobs go as a script says, behind a real gRPC server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from aimesh.training.v1 import training_pb2, training_pb2_grpc
from coordinator.api.training import job_id
from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError
from meshkit.server import ErrorInterceptor
from tools.cli.target import Mesh

RUNNING = training_pb2.JOB_STATE_RUNNING
SUCCEEDED, FAILED = training_pb2.JOB_STATE_SUCCEEDED, training_pb2.JOB_STATE_FAILED
STEPS = 4


@dataclass
class Script:
    """How a job goes."""

    value: float = 0.5
    loss: float = 1.0
    error: str = ""
    holds_at: int = 0
    """Stops at this step until it is cancelled, or `released` is set."""


@dataclass
class Scripted(training_pb2_grpc.TrainingServiceServicer):
    """Jobs are kept by id; nothing trains."""

    script: Callable[[dict[str, Any]], Script]
    jobs: dict[str, training_pb2.Job] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Of SubmitJob, each time that it was called."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Of CancelJob, by job."""
    on_submit: Callable[[training_pb2.Job], None] = lambda _: None
    gone: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set for a job that was cancelled."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    watches: int = 0
    most_watches: int = 0
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    drops: int = 0
    """So many watches more break off after their first view."""

    async def until_watched(self, count: int) -> None:
        """Returns once so many jobs are watched at a time."""
        async with self._moved, asyncio.timeout(60):
            await self._moved.wait_for(lambda: self.watches >= count)

    async def SubmitJob(self, request: training_pb2.SubmitJobRequest, context: Any) -> Any:  # noqa: N802
        self.requests.append(request.request_id)
        if request.spec.batch_size == 13:
            raise InvalidInputError("batch_size 13 is not possible")
        made = training_pb2.Job(id=job_id(request.spec.name, request.request_id), spec=request.spec, state=RUNNING)
        held = self.jobs.setdefault(made.id, made)
        assert held.spec == request.spec
        self.on_submit(held)
        return training_pb2.SubmitJobResponse(job=held)

    async def CancelJob(self, request: training_pb2.CancelJobRequest, context: Any) -> Any:  # noqa: N802
        job = self.jobs[request.id]
        if job.state != RUNNING:
            raise PreconditionError(f"job {job.id} has ended")
        self.reasons[job.id] = request.reason
        job.state, job.error = FAILED, f"cancelled: {request.reason}"
        self.gone.setdefault(job.id, asyncio.Event()).set()
        return training_pb2.CancelJobResponse(job=job)

    async def GetJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    async def ListJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    async def PauseJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    async def ResumeJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    async def DeleteJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    def GetJobLogs(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    def GetJobMetrics(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    async def GetStrategies(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise _unused()

    async def WatchJob(  # noqa: N802
        self, request: training_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[training_pb2.WatchJobResponse]:
        if request.id not in self.jobs:
            raise NotFoundError(f"there is no job {request.id!r}")
        job = self.jobs[request.id]
        async with self._moved:
            self.watches += 1
            self._moved.notify_all()
        self.most_watches = max(self.watches, self.most_watches)
        try:
            script = self.script({name: json.loads(value) for name, value in job.spec.hyperparameters.items()})
            yield self._view(job, script, script.holds_at or STEPS // 2)
            if self.drops:
                self.drops -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "this coordinator is going away")
            if script.holds_at:
                await self._released(job.id)
            self._end(job, script)
            yield self._view(job, script, STEPS if job.state == SUCCEEDED else script.holds_at)
        finally:
            self.watches -= 1

    async def _released(self, job: str) -> None:
        waits = [self.released.wait(), self.gone.setdefault(job, asyncio.Event()).wait()]
        tasks = [asyncio.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _end(self, job: training_pb2.Job, script: Script) -> None:
        if job.state != RUNNING:
            return
        if script.error:
            job.state, job.error = FAILED, script.error
            return
        job.state = SUCCEEDED
        job.results["accuracy"] = script.value
        if not job.spec.output.discard:
            job.model = f"{job.spec.output.model}:1.0.0"

    def _view(self, job: training_pb2.Job, script: Script, step: int) -> training_pb2.WatchJobResponse:
        progress = training_pb2.JobProgress(step=step, steps=STEPS)
        progress.points.extend(training_pb2.MetricPoint(step=at, loss=script.loss) for at in range(1, step + 1))
        return training_pb2.WatchJobResponse(job=job, progress=progress)


def _unused() -> AssertionError:
    return AssertionError("a search does not call this")


@asynccontextmanager
async def serving(service: Scripted) -> AsyncIterator[Mesh]:
    """The service on a port of its own, and a mesh that is nothing but this."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    training_pb2_grpc.add_TrainingServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Mesh((f"127.0.0.1:{port}",), "", Path("/nowhere"), None)
    finally:
        await server.stop(None)

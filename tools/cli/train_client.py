"""Calls to the training service."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import grpc
import grpc.aio

from aimesh.training.v1 import training_pb2, training_pb2_grpc
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh

Verb = Literal["pause", "resume", "cancel"]
SUBMIT_TRIES = 4
AGAIN_S = 0.5
"""Pause before a call that found nobody is made at another coordinator."""
POINTS_TIMEOUT_S = 120.0
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@asynccontextmanager
async def training_service(mesh: Mesh) -> AsyncIterator[training_pb2_grpc.TrainingServiceAsyncStub]:
    """The service at the first coordinator that answers."""
    async with connect(mesh, "coordinator") as channel:
        yield training_pb2_grpc.TrainingServiceStub(channel)


async def submit(mesh: Mesh, spec: training_pb2.JobSpec, request_id: str = "") -> training_pb2.Job:
    """Records a job, once: a call whose answer was lost is made again with the same request id.

    `request_id` is the caller's own, when the job is to be the same in a later call as well.
    """
    request = training_pb2.SubmitJobRequest(spec=spec, request_id=request_id or uuid.uuid4().hex)
    for tried in range(1, SUBMIT_TRIES + 1):
        try:
            async with training_service(mesh) as training:
                return (await training.SubmitJob(request, timeout=CALL_TIMEOUT_S)).job
        except grpc.aio.AioRpcError as error:
            if error.code() not in GONE or tried == SUBMIT_TRIES:
                raise
        await asyncio.sleep(AGAIN_S * tried)
    raise AssertionError("the last try returns or raises")


async def get_job(mesh: Mesh, job: str) -> training_pb2.GetJobResponse:
    """One job with its progress. Raises NotFoundError."""
    async with training_service(mesh) as training:
        return await training.GetJob(training_pb2.GetJobRequest(id=job), timeout=CALL_TIMEOUT_S)


async def list_jobs(mesh: Mesh, states: list[training_pb2.JobState.ValueType]) -> list[training_pb2.GetJobResponse]:
    """All jobs, newest first; only those in some states when any are named."""
    found: list[training_pb2.GetJobResponse] = []
    request = training_pb2.ListJobsRequest(states=states, page_size=1000)
    async with training_service(mesh) as training:
        while True:
            page = await training.ListJobs(request, timeout=CALL_TIMEOUT_S)
            found += page.jobs
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def steer(mesh: Mesh, verb: Verb, job: str, reason: str) -> training_pb2.Job:
    """Pauses, resumes or cancels. Raises PreconditionError when its state does not allow that."""
    async with training_service(mesh) as training:
        if verb == "pause":
            pause = training_pb2.PauseJobRequest(id=job, reason=reason)
            return (await training.PauseJob(pause, timeout=CALL_TIMEOUT_S)).job
        if verb == "resume":
            resume = training_pb2.ResumeJobRequest(id=job, reason=reason)
            return (await training.ResumeJob(resume, timeout=CALL_TIMEOUT_S)).job
        cancel = training_pb2.CancelJobRequest(id=job, reason=reason)
        return (await training.CancelJob(cancel, timeout=CALL_TIMEOUT_S)).job


async def delete_job(mesh: Mesh, job: str) -> None:
    """Removes a job. Raises PreconditionError while it has not ended."""
    async with training_service(mesh) as training:
        await training.DeleteJob(training_pb2.DeleteJobRequest(id=job), timeout=CALL_TIMEOUT_S)


async def metrics(mesh: Mesh, job: str) -> list[training_pb2.MetricPoint]:
    """Every measured point, oldest first."""
    request = training_pb2.GetJobMetricsRequest(id=job)
    async with training_service(mesh) as training:
        answers = training.GetJobMetrics(request, timeout=POINTS_TIMEOUT_S)
        return [point async for answer in answers for point in answer.points]


async def strategies(mesh: Mesh) -> training_pb2.StrategyTable:
    """What the mesh has learned of strategies."""
    async with training_service(mesh) as training:
        return (await training.GetStrategies(training_pb2.GetStrategiesRequest(), timeout=CALL_TIMEOUT_S)).table


async def logs(mesh: Mesh, request: training_pb2.GetJobLogsRequest) -> AsyncIterator[training_pb2.GetJobLogsResponse]:
    """What workers printed, as it comes: without a deadline, since a job that is followed may take days."""
    async with training_service(mesh) as training:
        async for answer in training.GetJobLogs(request):
            yield answer


async def follow(mesh: Mesh, job: str) -> AsyncIterator[training_pb2.WatchJobResponse]:
    """The job now and as it goes on until it has ended. A coordinator that goes away ends it with its error."""
    async with training_service(mesh) as training:
        async for answer in training.WatchJob(training_pb2.WatchJobRequest(id=job)):
            yield answer

"""TrainingService: takes, steers and shows jobs; the leader's controller carries them out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aimesh.training.v1 import training_pb2, training_pb2_grpc
from coordinator import keys
from coordinator.etcd import Delete, Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.loads import Loads
from coordinator.mirror import Mirror
from coordinator.order import Order
from coordinator.paging import page
from coordinator.training import steering
from coordinator.training.admission import Admission
from coordinator.training.agents import NodeTraining
from coordinator.training.check import check_job
from coordinator.training.logs import JobLogs
from coordinator.training.progress import progress_of
from coordinator.training.record import PENDING, QUEUED, is_over, timestamp
from coordinator.training.slowness import Slowness
from meshkit.auth import current_principal
from meshkit.errors import ConflictError, NotFoundError, SupersededError

PACE_S = 1.0
"""Least time between two views of one watch; also how often what is measured, which is no change, is shown anew."""
CHANGE_TRIES = 5
MOST_POINTS = 1000
"""Points in one message."""


@dataclass
class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Serves aimesh.training.v1. A write only states what is wanted; the leader carries it out."""

    etcd: Etcd
    mirror: Mirror
    outbox: Outbox
    loads: Loads
    nodes: NodeTraining
    admission: Admission
    now_ns: Callable[[], int] = time.time_ns
    _slowness: Slowness = field(default_factory=Slowness, init=False)

    async def SubmitJob(  # noqa: N802
        self, request: training_pb2.SubmitJobRequest, context: Any
    ) -> training_pb2.SubmitJobResponse:
        """Records a job; see training.proto."""
        spec = check_job(request.spec)
        key = keys.job(job_id(spec.name, request.request_id))
        _, (held,) = await self.etcd.get(key)
        if held.value is not None:
            return training_pb2.SubmitJobResponse(job=_same(keys.parse(held.value, training_pb2.Job()), spec))
        job = self._new(key.rpartition("/")[2], spec)
        await self.admission.check(self.mirror.state, job)
        if not await self._write(job, None, 0):  # submitted twice at this moment
            _, (held,) = await self.etcd.get(key)
            job = _same(keys.parse(held.value or b"{}", training_pb2.Job()), spec)
        return training_pb2.SubmitJobResponse(job=job)

    async def GetJob(self, request: training_pb2.GetJobRequest, context: Any) -> training_pb2.GetJobResponse:  # noqa: N802
        """One job with its progress."""
        return await self._shown(self._found(request.id), with_points=True)

    async def ListJobs(self, request: training_pb2.ListJobsRequest, context: Any) -> training_pb2.ListJobsResponse:  # noqa: N802
        """A page of jobs, newest first, without their points."""
        chosen = [job for job in self.mirror.state.jobs.values() if not request.states or job.state in request.states]
        chosen.sort(key=_page_key, reverse=True)
        items, token = page(
            chosen, request.page_size, request.page_token, _page_key, lambda job, last: _page_key(job) < last
        )
        shown = [await self._shown(job) for job in items]
        return training_pb2.ListJobsResponse(jobs=shown, next_page_token=token)

    async def WatchJob(  # noqa: N802
        self, request: training_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[training_pb2.WatchJobResponse]:
        """A job now and as it goes on, until it has ended."""
        last: training_pb2.WatchJobResponse | None = None
        while True:
            job = self._found(request.id)
            found = await self._shown(job, with_points=True)
            shown = training_pb2.WatchJobResponse(job=found.job, progress=found.progress)
            if shown != last:
                yield shown
                last = shown
            if is_over(job):
                return
            await self._paced(job)

    async def PauseJob(self, request: training_pb2.PauseJobRequest, context: Any) -> training_pb2.PauseJobResponse:  # noqa: N802
        """Has it write a checkpoint and give its nodes free."""
        order = self._order(request.reason)
        job = await self._change(request.id, lambda job: steering.paused(job, order))
        return training_pb2.PauseJobResponse(job=job)

    async def ResumeJob(self, request: training_pb2.ResumeJobRequest, context: Any) -> training_pb2.ResumeJobResponse:  # noqa: N802
        """Lets it wait for its turn again."""
        order = self._order(request.reason)
        job = await self._change(request.id, lambda job: steering.resumed(job, order))
        return training_pb2.ResumeJobResponse(job=job)

    async def CancelJob(self, request: training_pb2.CancelJobRequest, context: Any) -> training_pb2.CancelJobResponse:  # noqa: N802
        """Ends it for good."""
        order = self._order(request.reason)
        job = await self._change(request.id, lambda job: steering.cancelled(job, order))
        return training_pb2.CancelJobResponse(job=job)

    async def DeleteJob(self, request: training_pb2.DeleteJobRequest, context: Any) -> training_pb2.DeleteJobResponse:  # noqa: N802
        """Removes a job that has ended."""
        key = keys.job(request.id)
        _, (held,) = await self.etcd.get(key)
        if held.value is None:
            raise _none(request.id)
        steering.check_removable(keys.parse(held.value, training_pb2.Job()))
        event = await self.outbox.event(key, held.value, None)
        revision = await self.etcd.txn([Unchanged(key, held.mod_revision)], [Delete(key), event])
        if revision is None:
            raise SupersededError(f"job {request.id} changed in the meantime", hint="try again")
        await self.mirror.reached(revision)
        return training_pb2.DeleteJobResponse()

    async def GetJobLogs(  # noqa: N802
        self, request: training_pb2.GetJobLogsRequest, context: Any
    ) -> AsyncIterator[training_pb2.GetJobLogsResponse]:
        """What workers printed."""
        async with contextlib.aclosing(JobLogs(self.nodes).read(self._found(request.id), request)) as lines:
            async for line in lines:
                yield line

    async def GetJobMetrics(  # noqa: N802
        self, request: training_pb2.GetJobMetricsRequest, context: Any
    ) -> AsyncIterator[training_pb2.GetJobMetricsResponse]:
        """Every measured point that counts."""
        points = await self.nodes.points(self._found(request.id))
        for start in range(0, len(points), MOST_POINTS):
            yield training_pb2.GetJobMetricsResponse(points=points[start : start + MOST_POINTS])

    async def GetStrategies(  # noqa: N802
        self, request: training_pb2.GetStrategiesRequest, context: Any
    ) -> training_pb2.GetStrategiesResponse:
        """What was learned."""
        return training_pb2.GetStrategiesResponse(table=self.mirror.state.strategies)

    def _new(self, new_id: str, spec: training_pb2.JobSpec) -> training_pb2.Job:
        now = timestamp(self.now_ns())
        return training_pb2.Job(
            id=new_id,
            spec=spec,
            state=PENDING,
            phase=QUEUED,
            reason="submitted",
            created_at=now,
            phase_at=now,
            waiting_since=now,
            submitted_by=current_principal().actor,
        )

    async def _change(self, name: str, make: Callable[[training_pb2.Job], training_pb2.Job]) -> training_pb2.Job:
        """Writes what `make` makes of a job. Raises what it raises, NotFoundError, SupersededError.

        Tried again when the leader writes at the same moment.
        """
        for _ in range(CHANGE_TRIES):
            _, (held,) = await self.etcd.get(keys.job(name))
            if held.value is None:
                raise _none(name)
            job = keys.parse(held.value, training_pb2.Job())
            made = make(job)
            if made is job or await self._write(made, held.value, held.mod_revision):
                return made
        raise SupersededError(f"job {name} moved on at this moment", hint="try again")

    async def _write(self, job: training_pb2.Job, before: bytes | None, revision: int) -> bool:
        """Whether the job was written; not when it is not at this revision any more."""
        key, value = keys.job(job.id), keys.encode(job)
        event = await self.outbox.event(key, before, value)
        written = await self.etcd.txn([Unchanged(key, revision)], [Put(key, value), event])
        if written is not None:
            await self.mirror.reached(written)
        return written is not None

    async def _shown(self, job: training_pb2.Job, *, with_points: bool = False) -> training_pb2.GetJobResponse:
        loads = {} if is_over(job) else await self.loads()
        points = await self.nodes.points(job) if with_points and job.attempt.number else ()
        progress = progress_of(self.mirror.state, job, loads, points, self._slowness)
        return training_pb2.GetJobResponse(job=job, progress=progress)

    async def _paced(self, job: training_pb2.Job) -> None:
        """Waits for a change of the job, or for PACE_S seconds; for a part of that even when it changes at once."""
        state = self.mirror.state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PACE_S):
                while self.mirror.state.jobs.get(job.id) is job:
                    state = await self.mirror.newer_than(state)
        await asyncio.sleep(PACE_S / 4)

    def _order(self, reason: str) -> Order:
        return Order(current_principal().actor, reason, self.now_ns())

    def _found(self, name: str) -> training_pb2.Job:
        job = self.mirror.state.jobs.get(name)
        if job is None:
            raise _none(name)
        return job


def job_id(name: str, request_id: str) -> str:
    """The id of a job: its name and six characters, the same for the same request."""
    content = hashlib.sha256(f"{name}/{request_id}".encode()).digest() if request_id else secrets.token_bytes(8)
    return f"{name}-{base64.b32encode(content)[:6].decode().lower()}"


def _same(held: training_pb2.Job, spec: training_pb2.JobSpec) -> training_pb2.Job:
    if held.spec != spec:
        raise ConflictError(
            f"job {held.id} was submitted with another content under this request_id",
            hint="make a new request_id for another job",
            reason="JOB_EXISTS",
        )
    return held


def _page_key(job: training_pb2.Job) -> str:
    return f"{job.created_at.ToNanoseconds():020d}/{job.id}"


def _none(name: str) -> NotFoundError:
    return NotFoundError(f"there is no job {name!r}", hint="see: aimesh train list", reason="JOB_NOT_FOUND")

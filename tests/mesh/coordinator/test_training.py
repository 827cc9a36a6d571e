"""Jobs on a real coordinator and etcd, with agents that speak membership.proto and pretend to train."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from aimesh.training.v1 import node_pb2, node_pb2_grpc, training_pb2, training_pb2_grpc
from coordinator.training import controller
from meshkit.failpoints import Armed
from tests.mesh.coordinator.conftest import Agent, RunningCoordinator, agent, coordinator
from tests.processes import EtcdServer, eventually

MODEL = b"a trained model"
DIGEST = hashlib.sha256(MODEL).hexdigest()
STEPS = 400
SUCCEEDED = training_pb2.JOB_STATE_SUCCEEDED
FAILED = training_pb2.JOB_STATE_FAILED


@dataclass
class Trainer(artifacts_pb2_grpc.ArtifactsServiceServicer, node_pb2_grpc.NodeTrainingServiceServicer):
    """An agent that does what its tasks say at once, and trains until it is told how that ends."""

    session: Agent
    server: grpc.aio.Server
    statuses: dict[tuple[str, int, int, int], training_pb2.TaskStatus] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    at_step: int = 0
    """Of every worker here."""
    done: bool = False
    """Whether workers end with success."""
    mute: bool = False
    """Whether it gives away no blob."""
    _following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.session.obedient = False
        await self.session.join()
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.session.stop()
        await self.server.stop(None)

    def fail(self, message: str, *, may_retry: bool = True) -> None:
        for status in self.statuses.values():
            status.state, status.message, status.may_retry = training_pb2.TASK_STATE_FAILED, message, may_retry
            status.failed_at.GetCurrentTime()

    def kinds(self) -> list[int]:
        return [key[3] for key in self.statuses]

    async def DownloadBlob(  # noqa: N802
        self, request: artifacts_pb2.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
        assert request.digest == DIGEST
        if self.mute:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the disk is away")
        yield artifacts_pb2.DownloadBlobResponse(data=MODEL[request.offset :])

    async def ReadLog(  # noqa: N802
        self, request: node_pb2.ReadLogRequest, context: Any
    ) -> AsyncIterator[node_pb2.ReadLogResponse]:
        yield node_pb2.ReadLogResponse(text=f"{self.session.hello.node_id} {request.attempt}-{request.rank}\n")

    async def ReadMetrics(  # noqa: N802
        self, request: node_pb2.ReadMetricsRequest, context: Any
    ) -> AsyncIterator[node_pb2.ReadMetricsResponse]:
        points = [training_pb2.MetricPoint(step=step, loss=1 / step, attempt=1) for step in range(1, 301)]
        yield node_pb2.ReadMetricsResponse(points=points)

    async def _follow(self) -> None:
        last = b""
        while True:
            given = self.session.assignments[-1].tasks if self.session.assignments else ()
            wanted = {(t.job, t.attempt, t.rank, int(t.kind)): t for t in given}
            self.statuses = {key: each for key, each in self.statuses.items() if key in wanted}
            for key, task in wanted.items():
                self._work(self.statuses.setdefault(key, _status(task)), task)
                self.blobs |= {file.digest for file in (*task.copies, *task.resume.files)}
            report = membership_pb2.ModelReport(tasks=self.statuses.values(), blobs=sorted(self.blobs))
            report.triton.CopyFrom(self.session.hello.report.triton)
            if (said := report.SerializeToString(deterministic=True)) != last:
                last = said
                self.session.outgoing.put_nowait(membership_pb2.AgentMessage(report=report))
            await asyncio.sleep(0.01)

    def _work(self, status: training_pb2.TaskStatus, task: training_pb2.TrainingTask) -> None:
        if status.state in (training_pb2.TASK_STATE_FAILED, training_pb2.TASK_STATE_SUCCEEDED):
            return
        if task.kind == training_pb2.TASK_KIND_PLAN:
            status.state = training_pb2.TASK_STATE_SUCCEEDED
            status.plan.CopyFrom(_plan(task.spec))
        elif task.kind == training_pb2.TASK_KIND_FINISH:
            status.state, status.version = training_pb2.TASK_STATE_SUCCEEDED, _packed(task.model)
        elif task.stop:
            self._checkpoint(status, task)
            status.state, status.step = training_pb2.TASK_STATE_STOPPED, self.at_step
        elif not task.go:
            status.state, status.port = training_pb2.TASK_STATE_READY, 7000
        else:
            status.state, status.pid = training_pb2.TASK_STATE_RUNNING, 4711
            if self.at_step:
                self._checkpoint(status, task)
            if self.done:
                status.state, status.step = training_pb2.TASK_STATE_SUCCEEDED, STEPS
                status.results["samples_per_s"] = 90.0

    def _checkpoint(self, status: training_pb2.TaskStatus, task: training_pb2.TrainingTask) -> None:
        if any(each.step == self.at_step for each in status.checkpoints):
            return
        digest = hashlib.sha256(f"{task.job} {task.attempt} {task.rank} {self.at_step}".encode()).hexdigest()
        self.blobs.add(digest)
        file = training_pb2.CheckpointFile(path=f"{task.rank}.distcp", digest=digest, bytes=5)
        status.checkpoints.insert(0, training_pb2.Checkpoint(step=self.at_step, files=[file], attempt=task.attempt))
        del status.checkpoints[2:]


def _status(task: training_pb2.TrainingTask) -> training_pb2.TaskStatus:
    return training_pb2.TaskStatus(job=task.job, attempt=task.attempt, rank=task.rank, kind=task.kind)


def _plan(asked: training_pb2.JobSpec) -> training_pb2.JobPlan:
    return training_pb2.JobPlan(
        strategy=training_pb2.STRATEGY_DDP, steps=asked.steps, situation="small/small/2/fast", alone_samples_per_s=100
    )


def _packed(model: str) -> str:
    name, _, version = model.partition(":")
    made = registry_pb2.ModelVersion(
        name=name,
        version=version,
        runtime="torch",
        files=[registry_pb2.ModelFile(path="1/model.pt2", digest=DIGEST, size=len(MODEL))],
    )
    return json_format.MessageToJson(made)


def spec(least: int = 2, **changes: object) -> training_pb2.JobSpec:
    made = training_pb2.JobSpec(
        name="digits",
        task="classifier",
        data=training_pb2.Data(builtin="digits"),
        steps=STEPS,
        resources=training_pb2.Resources(min_workers=least, max_workers=2),
    )
    made.MergeFrom(training_pb2.JobSpec(**changes))  # type: ignore[arg-type]
    return made


@contextlib.asynccontextmanager
async def trainers(address: str, *names: str) -> AsyncIterator[dict[str, Trainer]]:
    """Agents with these ids, each with a server of its own."""
    made: dict[str, Trainer] = {}
    try:
        for name in names:
            made[name] = await trainer(address, name)
        yield made
    finally:
        for each in made.values():
            await each.stop()


async def trainer(address: str, name: str) -> Trainer:
    made = Trainer(agent(address, name, instance=f"i-{name}"), grpc.aio.server())  # type: ignore[abstract]
    artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(made, made.server)
    node_pb2_grpc.add_NodeTrainingServiceServicer_to_server(made, made.server)
    made.session.hello.port = made.server.add_insecure_port("127.0.0.1:0")
    made.session.hello.runtimes["training"] = "2.9.1"
    await made.server.start()
    await made.start()
    return made


class Jobs:
    """TrainingService of one coordinator."""

    def __init__(self, started: RunningCoordinator) -> None:
        self.stub: Any = training_pb2_grpc.TrainingServiceStub(started.channel)

    async def submit(self, asked: training_pb2.JobSpec, request_id: str = "") -> str:
        request = training_pb2.SubmitJobRequest(spec=asked, request_id=request_id)
        return str((await self.stub.SubmitJob(request, timeout=5)).job.id)

    async def get(self, job_id: str) -> training_pb2.GetJobResponse:
        answer: training_pb2.GetJobResponse = await self.stub.GetJob(training_pb2.GetJobRequest(id=job_id), timeout=5)
        return answer

    async def until(self, job_id: str, **wanted: object) -> training_pb2.Job:
        """The job once it is so: phase, state, attempt ..."""

        async def found() -> training_pb2.Job | None:
            job = (await self.get(job_id)).job
            seen = {"attempt": job.attempt.number, "phase": job.phase, "state": job.state, "step": job.checkpoint.step}
            seen["lost_steps"] = job.lost_steps
            return job if all(seen[key] == value for key, value in wanted.items()) else None

        await eventually(found, what=f"job {wanted}")
        return (await self.get(job_id)).job


async def test_a_job_trains_and_its_result_is_a_version(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as started, trainers(started.settings.address, "n1", "n2") as nodes:
        jobs = Jobs(started)
        job_id = await jobs.submit(spec(), "once")
        assert await jobs.submit(spec(), "once") == job_id
        with pytest.raises(grpc.aio.AioRpcError, match="another content"):
            await jobs.submit(spec(steps=7), "once")
        job = await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING)
        assert [worker.node for worker in job.attempt.workers] == ["n1", "n2"]
        assert job.attempt.rendezvous == "127.0.0.1:7000"

        async def running() -> training_pb2.JobProgress | None:
            shown = (await jobs.get(job_id)).progress
            return shown if all(each.pid == 4711 for each in shown.workers) else None

        shown = await eventually(running)
        assert [each.worker.node for each in shown.workers] == ["n1", "n2"]
        assert (len(shown.points), shown.points[-1].step) == (200, 300)
        logs = [line async for line in jobs.stub.GetJobLogs(training_pb2.GetJobLogsRequest(id=job_id), timeout=5)]
        assert sorted(line.text for line in logs) == ["n1 1-0\n", "n2 1-1\n"]
        metrics = [answer async for answer in jobs.stub.GetJobMetrics(training_pb2.GetJobMetricsRequest(id=job_id))]
        assert sum(len(answer.points) for answer in metrics) == 300

        watched: list[training_pb2.WatchJobResponse] = []

        async def watch() -> None:
            async for answer in jobs.stub.WatchJob(training_pb2.WatchJobRequest(id=job_id), timeout=20):
                watched.append(answer)

        watching = asyncio.create_task(watch())
        for each in nodes.values():
            each.done, each.mute = True, True
        await eventually(lambda: any("is not recorded yet: " in each.job.reason for each in watched), what="the reason")
        for each in nodes.values():
            each.mute = False
        await watching
        assert (watched[-1].job.state, watched[-1].job.model) == (SUCCEEDED, "digits:1.0.0")
        registry: Any = registry_pb2_grpc.RegistryServiceStub(started.channel)
        version = (await registry.GetVersion(registry_pb2.GetVersionRequest(name="digits"), timeout=5)).version
        assert version.provenance.source == f"training job {job_id}"
        assert version.provenance.details["strategy"] == "ddp"
        table = (await jobs.stub.GetStrategies(training_pb2.GetStrategiesRequest(), timeout=5)).table
        assert [(each.situation, each.visits) for each in table.values] == [("small/small/2/fast", 1)]
        await eventually(lambda: nodes["n1"].kinds() == [], what="no task left")


async def test_losses_are_made_up_for_and_errors_of_the_code_are_not(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as started, trainers(started.settings.address, "n1", "n2", "n3") as nodes:
        jobs = Jobs(started)
        job_id = await jobs.submit(spec())
        job = await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING)
        first, second = (nodes[worker.node] for worker in job.attempt.workers)
        first.at_step = second.at_step = 40
        await jobs.until(job_id, step=40)
        began = time.monotonic()
        second.fail("killed by signal 9")
        job = await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING, attempt=2)
        assert time.monotonic() - began < 5
        assert (job.failures, job.attempt.resume.step) == (1, 40)
        assert f"rank 1 on {second.session.hello.node_id}: killed by signal 9" in job.reason
        job = await jobs.until(job_id, lost_steps=260)
        assert (job.step, job.attempt.from_step) == (300, 40), "rank 0 tells of steps that no heartbeat had told of"

        asked = training_pb2.GetJobLogsRequest(id=job_id, attempt=1, rank=1)
        logs = [line.text async for line in jobs.stub.GetJobLogs(asked, timeout=5)]
        assert logs[0].endswith(" 1-1\n")

        gone = nodes[job.attempt.workers[0].node]
        began = time.monotonic()
        await gone.session.vanish()
        job = await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING, attempt=3)
        assert time.monotonic() - began < 10
        assert gone.session.hello.node_id not in [worker.node for worker in job.attempt.workers]

        nodes[job.attempt.workers[1].node].fail("label 11 is out of range", may_retry=False)
        job = await jobs.until(job_id, state=FAILED)
        assert job.error == f"rank 1 on {job.attempt.workers[1].node}: label 11 is out of range"


async def test_people_pause_resume_cancel_and_remove(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as started, trainers(started.settings.address, "n1", "n2") as nodes:
        jobs = Jobs(started)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await jobs.submit(spec(resources=training_pb2.Resources(gpus=8)))
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "n1: a worker needs 8 GPUs, it has 0" in str(refused.value.details())
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await jobs.submit(spec(base_model="nothing:1.0.0"))
        assert missing.value.code() == grpc.StatusCode.NOT_FOUND

        job_id = await jobs.submit(spec())
        await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING)
        for each in nodes.values():
            each.at_step = 30
        await jobs.stub.PauseJob(training_pb2.PauseJobRequest(id=job_id, reason="lunch"), timeout=5)
        job = await jobs.until(job_id, state=training_pb2.JOB_STATE_PAUSED)
        assert (job.checkpoint.step, job.reason) == (30, "paused by anyone: lunch")
        await eventually(lambda: nodes["n1"].kinds() == [])
        await jobs.stub.ResumeJob(training_pb2.ResumeJobRequest(id=job_id), timeout=5)
        job = await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING)
        assert (job.attempt.number, job.attempt.from_step, job.failures) == (2, 30, 0)
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be removed"):
            await jobs.stub.DeleteJob(training_pb2.DeleteJobRequest(id=job_id), timeout=5)
        await jobs.stub.CancelJob(training_pb2.CancelJobRequest(id=job_id, reason="wrong data"), timeout=5)
        job = await jobs.until(job_id, state=FAILED)
        assert job.error == "cancelled by anyone: wrong data"
        listed = await jobs.stub.ListJobs(training_pb2.ListJobsRequest(states=[FAILED]), timeout=5)
        assert [each.job.id for each in listed.jobs] == [job_id]
        await jobs.stub.DeleteJob(training_pb2.DeleteJobRequest(id=job_id), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError, match="there is no job"):
            await jobs.get(job_id)


async def test_another_leader_goes_on_where_the_last_one_was(
    etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it does not learn what became of what it wrote, or nothing did."""
    monkeypatch.setattr(controller, "failpoint", Armed("training.decided=error#4;training.written=error#4"))
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(coordinator(etcd, tmp_path, "c1"))
        async with coordinator(etcd, tmp_path, "c2") as second, trainers(second.settings.address, "n1", "n2") as nodes:
            jobs = Jobs(second)
            job_id = await jobs.submit(spec())
            await jobs.until(job_id, phase=training_pb2.JOB_PHASE_TRAINING)
            assert any(each.id == "c1" and each.leader for each in (await second.status()).coordinators)
            await stack.aclose()
            assert first.task.done()
            for each in nodes.values():
                each.done = True
            job = await jobs.until(job_id, state=SUCCEEDED)
            assert (job.attempt.number, job.model) == (1, "digits:1.0.0")

"""Calls to the experiment service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from aimesh.experiment.v1 import experiment_pb2, experiment_pb2_grpc
from meshkit.errors import UnavailableError
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh

Verb = Literal["promote", "reject", "cancel"]
CREATE_TIMEOUT_S = 60.0
"""The coordinator reads all of the dataset and checks each question."""
COMPARE_TIMEOUT_S = 6 * 3600.0
LOOK_S = 0.5
SETTLED = (
    experiment_pb2.EXPERIMENT_STATE_HELD,
    experiment_pb2.EXPERIMENT_STATE_PROMOTED,
    experiment_pb2.EXPERIMENT_STATE_QUARANTINED,
    experiment_pb2.EXPERIMENT_STATE_CANCELLED,
)
"""States that nothing leads out of but a person."""


@asynccontextmanager
async def experiment_service(mesh: Mesh) -> AsyncIterator[experiment_pb2_grpc.ExperimentServiceAsyncStub]:
    """The service at the first coordinator that answers."""
    async with connect(mesh, "coordinator") as channel:
        yield experiment_pb2_grpc.ExperimentServiceStub(channel)


async def create(mesh: Mesh, spec: experiment_pb2.ExperimentSpec) -> experiment_pb2.Experiment:
    """Creates one. Raises what the service refuses it for."""
    async with experiment_service(mesh) as experiments:
        request = experiment_pb2.CreateExperimentRequest(spec=spec)
        return (await experiments.CreateExperiment(request, timeout=CREATE_TIMEOUT_S)).experiment


async def get(mesh: Mesh, name: str) -> experiment_pb2.GetExperimentResponse:
    """One with its report. Raises NotFoundError."""
    async with experiment_service(mesh) as experiments:
        return await experiments.GetExperiment(experiment_pb2.GetExperimentRequest(name=name), timeout=CALL_TIMEOUT_S)


async def follow(
    mesh: Mesh, name: str, tell: Callable[[experiment_pb2.Experiment], None]
) -> experiment_pb2.GetExperimentResponse:
    """Waits until it is over, or for a person; tells each change."""
    last: experiment_pb2.Experiment | None = None
    async with experiment_service(mesh) as experiments:
        while True:
            request = experiment_pb2.GetExperimentRequest(name=name)
            found = await experiments.GetExperiment(request, timeout=CALL_TIMEOUT_S)
            if found.experiment != last:
                last = found.experiment
                tell(last)
            if found.experiment.state in SETTLED:
                return found
            await asyncio.sleep(LOOK_S)


async def list_all(mesh: Mesh, model: str) -> tuple[list[experiment_pb2.Experiment], str]:
    """All, newest first, and why they may not be all."""
    found: list[experiment_pb2.Experiment] = []
    request = experiment_pb2.ListExperimentsRequest(page_size=1000, model=model)
    async with experiment_service(mesh) as experiments:
        while True:
            answer = await experiments.ListExperiments(request, timeout=CALL_TIMEOUT_S)
            found += answer.experiments
            if not answer.next_page_token:
                return found, answer.warning
            request.page_token = answer.next_page_token


async def decide(mesh: Mesh, verb: Verb, name: str, reason: str) -> experiment_pb2.Experiment:
    """Promotes, rejects or cancels. Raises PreconditionError when its state does not allow that."""
    async with experiment_service(mesh) as experiments:
        if verb == "promote":
            up = experiment_pb2.PromoteExperimentRequest(name=name, reason=reason)
            return (await experiments.PromoteExperiment(up, timeout=CALL_TIMEOUT_S)).experiment
        if verb == "reject":
            down = experiment_pb2.RejectExperimentRequest(name=name, reason=reason)
            return (await experiments.RejectExperiment(down, timeout=CALL_TIMEOUT_S)).experiment
        end = experiment_pb2.CancelExperimentRequest(name=name, reason=reason)
        return (await experiments.CancelExperiment(end, timeout=CALL_TIMEOUT_S)).experiment


async def compare(
    mesh: Mesh, request: experiment_pb2.CompareRequest, tell: Callable[[int, int], None]
) -> experiment_pb2.Report:
    """Compares two versions; tells how many requests of how many are done."""
    async with experiment_service(mesh) as experiments:
        async for answer in experiments.Compare(request, timeout=COMPARE_TIMEOUT_S):
            tell(answer.done, answer.total)
            if answer.HasField("report"):
                return answer.report
    raise UnavailableError("the coordinator ended the comparison without a report", hint="try again")


async def quarantined(mesh: Mesh) -> list[experiment_pb2.Quarantine]:
    """All that is or was quarantined."""
    found: list[experiment_pb2.Quarantine] = []
    request = experiment_pb2.ListQuarantineRequest(page_size=1000)
    async with experiment_service(mesh) as experiments:
        while True:
            answer = await experiments.ListQuarantine(request, timeout=CALL_TIMEOUT_S)
            found += answer.quarantined
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token


async def release(mesh: Mesh, digits: str, reason: str) -> experiment_pb2.Quarantine:
    """Lifts a quarantine. Raises NotFoundError, PreconditionError."""
    async with experiment_service(mesh) as experiments:
        request = experiment_pb2.ReleaseQuarantineRequest(hash=digits, reason=reason)
        return (await experiments.ReleaseQuarantine(request, timeout=CALL_TIMEOUT_S)).quarantine

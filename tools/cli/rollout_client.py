"""Calls to the rollout service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh

Verb = Literal["pause", "resume", "promote", "abort", "undo"]


@asynccontextmanager
async def rollout_service(mesh: Mesh) -> AsyncIterator[rollout_pb2_grpc.RolloutServiceAsyncStub]:
    """The service at the first coordinator that answers."""
    async with connect(mesh, "coordinator") as channel:
        yield rollout_pb2_grpc.RolloutServiceStub(channel)


async def plan_rollout(mesh: Mesh, spec: rollout_pb2.RolloutSpec) -> rollout_pb2.Plan:
    """What a rollout would do. Raises what StartRollout would."""
    async with rollout_service(mesh) as rollouts:
        answer = await rollouts.PlanRollout(rollout_pb2.PlanRolloutRequest(spec=spec), timeout=CALL_TIMEOUT_S)
    return answer.plan


async def start_rollout(mesh: Mesh, spec: rollout_pb2.RolloutSpec) -> rollout_pb2.StartRolloutResponse:
    """Starts one."""
    async with rollout_service(mesh) as rollouts:
        return await rollouts.StartRollout(rollout_pb2.StartRolloutRequest(spec=spec), timeout=CALL_TIMEOUT_S)


async def get_rollout(mesh: Mesh, name: str) -> rollout_pb2.GetRolloutResponse:
    """The newest rollout of a deployment. Raises NotFoundError."""
    async with rollout_service(mesh) as rollouts:
        return await rollouts.GetRollout(rollout_pb2.GetRolloutRequest(name=name), timeout=CALL_TIMEOUT_S)


async def list_rollouts(mesh: Mesh) -> list[rollout_pb2.Rollout]:
    """The newest rollout of each deployment."""
    found: list[rollout_pb2.Rollout] = []
    token = ""
    async with rollout_service(mesh) as rollouts:
        while True:
            request = rollout_pb2.ListRolloutsRequest(page_token=token)
            answer = await rollouts.ListRollouts(request, timeout=CALL_TIMEOUT_S)
            found += answer.rollouts
            token = answer.next_page_token
            if not token:
                return found


async def steer(mesh: Mesh, verb: Verb, name: str, reason: str, version: str = "") -> rollout_pb2.Rollout:
    """Pauses, resumes, promotes, aborts or undoes. Raises PreconditionError when its state does not allow that."""
    async with rollout_service(mesh) as rollouts:
        if verb == "promote":
            wanted = rollout_pb2.PromoteRolloutRequest(name=name, reason=reason, version=version)
            return (await rollouts.PromoteRollout(wanted, timeout=CALL_TIMEOUT_S)).rollout
        if verb == "pause":
            pause = rollout_pb2.PauseRolloutRequest(name=name, reason=reason)
            return (await rollouts.PauseRollout(pause, timeout=CALL_TIMEOUT_S)).rollout
        if verb == "resume":
            resume = rollout_pb2.ResumeRolloutRequest(name=name, reason=reason)
            return (await rollouts.ResumeRollout(resume, timeout=CALL_TIMEOUT_S)).rollout
        if verb == "abort":
            abort = rollout_pb2.AbortRolloutRequest(name=name, reason=reason)
            return (await rollouts.AbortRollout(abort, timeout=CALL_TIMEOUT_S)).rollout
        undo = rollout_pb2.UndoRolloutRequest(name=name, reason=reason)
        return (await rollouts.UndoRollout(undo, timeout=CALL_TIMEOUT_S)).rollout


async def follow(mesh: Mesh, name: str) -> AsyncIterator[rollout_pb2.WatchRolloutResponse]:
    """The rollout now and at each change until it is over. A coordinator that goes away ends it with its error."""
    async with rollout_service(mesh) as rollouts:
        async for answer in rollouts.WatchRollout(rollout_pb2.WatchRolloutRequest(name=name)):
            yield answer

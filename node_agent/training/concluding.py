"""The end of a task: how its process ended, what it leaves, and what is reported of that."""

from __future__ import annotations

import asyncio

from google.protobuf import json_format

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from node_agent.training import holding
from node_agent.training.folder import Folder
from node_agent.training.heard import Heard
from node_agent.training.logs import tail_text
from node_agent.training.outcome import Ending, Outcome, last_lines, outcome
from node_agent.training.seats import Seats
from node_agent.training.standing import FAILED, STOPPED, Standing
from node_agent.training.tools import TaskFailedError


async def conclude(standing: Standing, seats: Seats, heard: Heard) -> None:
    """Reports how the main process ended, unless that is reported already.

    Raises TaskFailedError when that is a failure, or what it was to make is not there; what `hold_version` raises.
    """
    if standing.status.state == FAILED:
        return
    found = await _end_of(standing, seats, heard)
    if standing.task.kind == training_pb2.TASK_KIND_FINISH:
        await _take_version(standing)
    elif standing.task.kind == training_pb2.TASK_KIND_PLAN and not standing.status.HasField("plan"):
        raise TaskFailedError("the planner ended without a plan", may_retry=False)
    await standing.set(found.state, "the agent was told to end" if standing.leaving else "")


async def lost(standing: Standing, seats: Seats, heard: Heard) -> None:
    """Raises TaskFailedError with how a main process ended that was only to wait."""
    found = await _end_of(standing, seats, heard)
    raise TaskFailedError(found.message or "the process ended before it was told to go", may_retry=True)


async def log_text(folder: Folder) -> str:
    """The last lines of a task's log, in one."""
    return last_lines(await asyncio.to_thread(tail_text, folder.log))


async def _end_of(standing: Standing, seats: Seats, heard: Heard) -> Outcome:
    """How the main process ended. Raises TaskFailedError when that is a failure."""
    seat = seats.main
    if seats.over_limit:
        raise TaskFailedError(seats.over_limit, may_retry=False)
    if seats.stopped and heard.said.done is None:
        raise TaskFailedError(seats.stopped, may_retry=True)
    known = standing.state.processes
    standing.state.processes = {name: each for name, each in known.items() if name != seat.role.name}
    if message := seats.killed_by_group(seat):
        raise TaskFailedError(message, may_retry=False)
    ending = Ending(
        code=await seat.status(),
        done=heard.said.done,
        ended=seat.ended,
        out_of_memory=seats.out_of_memory,
        log=await log_text(standing.folder),
    )
    found = outcome(ending)
    if found.state == FAILED and seats.cast.restarts and standing.stopping:
        found = Outcome(STOPPED)  # a client has nothing that would be lost
    if found.state == FAILED:
        raise TaskFailedError(found.message, may_retry=found.may_retry)
    return found


async def _take_version(standing: Standing) -> None:
    """Holds the files of the packed result, and reports what it is."""
    text = await asyncio.to_thread((standing.folder.packed / "version.json").read_text)
    try:
        version = json_format.Parse(text, registry_pb2.ModelVersion())
    except json_format.ParseError as error:
        raise TaskFailedError(f"version.json is none: {error}", may_retry=False) from None
    standing.state.packed = await holding.hold_version(standing.tools.store, standing.folder, version)
    standing.status.version = text

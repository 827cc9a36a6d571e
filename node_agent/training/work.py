"""One task on this node, from what it needs to its end: prepared, started, followed, stopped, reported."""

from __future__ import annotations

import asyncio

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError, InvalidInputError, PreconditionError
from node_agent.training.clients import Clients
from node_agent.training.concluding import conclude
from node_agent.training.copies import hold_copies
from node_agent.training.folder import Folder
from node_agent.training.following import Following
from node_agent.training.heard import Heard
from node_agent.training.seats import TERM_S, Seats
from node_agent.training.standing import FAILED, RUNNING, Standing
from node_agent.training.starting import Starting
from node_agent.training.state import TaskState
from node_agent.training.tools import TaskFailedError, Tools


class TaskWork:
    """What is being done with one task. `run` carries it to its end and goes on holding copies, until cancelled."""

    def __init__(self, state: TaskState, folder: Folder, tools: Tools) -> None:
        self.state = state
        self.folder = folder
        self._tools = tools
        self._copies_changed = asyncio.Event()
        self._standing = Standing(state, folder, tools)
        self.seats = Seats(self._standing)
        self._heard = Heard(state, folder, tools, self.progress, self._told_error, self._standing.save)
        self._starting = Starting(self._standing, self.seats, self._heard)
        self._following = Following(self._standing, self.seats, self._heard)
        self._clients = Clients(self._standing, self.seats, self._heard)

    async def run(self) -> None:
        """Its life, and what goes on beside it. Until cancelled, which leaves its processes as they are."""
        async with asyncio.TaskGroup() as group:
            group.create_task(hold_copies(self._tools, lambda: self.task, self._copies_changed, self._standing.tell))
            group.create_task(self._heard.hold_checkpoints())
            if self.seats.cast.client is not None:
                group.create_task(self._clients.keep(self.seats.cast.client))
            group.create_task(self._live_or_fail())

    async def _live(self) -> None:
        """From nothing to the end. Raises what the task fails with."""
        if self.over:  # an agent before saw to that, and perhaps not to the process
            await self.seats.main.end(0.0)
            return
        if self._tools.unfit:
            raise TaskFailedError(self._tools.unfit, may_retry=True)
        if self.status.state != RUNNING:  # else an agent before has come so far
            if not self._starting.still_ready():
                await self._starting.prepare()
            if not await self._starting.until_go():
                return
            await self._tools.others_gone(self.state)
            await self._starting.begin()
        await self._following.follow()
        while self._clients.may_restart():
            await self._clients.restart()
            await self._following.follow()
        await conclude(self._standing, self.seats, self._heard)

    async def _live_or_fail(self) -> None:
        """An error becomes its state."""
        try:
            await self._live()
        except TaskFailedError as error:
            await self._standing.fail(error.message, may_retry=error.may_retry)
        except (AimeshError, OSError, ValueError) as error:
            lasting = isinstance(error, InvalidInputError | PreconditionError | ValueError)
            await self._standing.fail(str(error), may_retry=not lasting)
        if self.status.state == FAILED:
            await self.end(TERM_S)

    async def _told_error(self, event: training_pb2.WorkerEvent) -> None:
        """The main process said why it ends: that is told at once, whenever it may be gone."""
        if not (self.seats.cast.restarts and event.error.may_retry):
            at_ns = event.at.ToNanoseconds()
            await self._standing.fail(event.error.message, may_retry=event.error.may_retry, at_ns=at_ns)

    # What the node's tasks ask of it.

    @property
    def task(self) -> training_pb2.TrainingTask:
        """As it was assigned last."""
        return self._standing.task

    @property
    def status(self) -> training_pb2.TaskStatus:
        """As it is reported."""
        return self._standing.status

    @property
    def progress(self) -> training_pb2.TaskProgress:
        """How it goes on."""
        return self._standing.progress

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self._standing.over

    @property
    def busy(self) -> bool:
        """Whether a process of it runs that trains."""
        return self.seats.busy

    async def warm(self) -> None:
        """Sees to it, while it trains, that there is something to fork the worker of another attempt from.

        Raises what `Launcher.warm` raises.
        """
        if self.status.state == RUNNING:
            await self.seats.warm()

    def update(self, task: training_pb2.TrainingTask) -> None:
        """Takes what the coordinator says of it now."""
        if task != self.state.task:
            self.state.task = task
            self._standing.changed.set()
            self._copies_changed.set()

    def ask_stop(self) -> None:
        """The agent is to end: a worker writes a checkpoint and stops."""
        self._standing.leaving = True
        self._standing.changed.set()

    async def end(self, grace_s: float) -> None:
        """Ends its processes: SIGTERM, and SIGKILL after so many seconds."""
        await self.seats.end(grace_s)

    def release(self) -> None:
        """Leaves its processes to the next agent."""
        self.seats.release()

    def adopt(self) -> None:
        """Goes on with the processes that an agent before started."""
        self.seats.adopt()

    def measure(self, gpu_bytes: dict[int, int]) -> None:
        """Looks at what its processes take, and ends a worker that takes too much. Blocks for some milliseconds."""
        self.seats.measure(gpu_bytes)

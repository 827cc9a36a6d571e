"""What the main process of a task says, and what is made of it: progress, checkpoints that are held, its last word."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError
from meshkit.threads import uninterrupted
from node_agent.training import holding
from node_agent.training.events import EventTail
from node_agent.training.folder import Folder
from node_agent.training.state import TaskState
from node_agent.training.tools import Tools

log = structlog.get_logger()

_MOST_PENDING = 8
"""Checkpoints that wait to be given digests; the oldest is left out when there are more."""
_NONE = "no checkpoint "
"""How a message begins that a newer checkpoint makes untrue."""


@dataclass
class Said:
    """The last word of a process."""

    done: training_pb2.Done | None = None
    last_at: float = 0.0
    """Monotonic seconds of that, or of an error; 0 before either."""


class Heard:
    """Follows one process."""

    def __init__(
        self,
        state: TaskState,
        folder: Folder,
        tools: Tools,
        progress: training_pb2.TaskProgress,
        on_error: Callable[[training_pb2.WorkerEvent], Awaitable[None]],
        save: Callable[[], Awaitable[None]],
    ) -> None:
        """`state` and `progress` are changed; `on_error` is called with an event that is an error."""
        self._state = state
        self._folder = folder
        self._tools = tools
        self._progress = progress
        self._on_error = on_error
        self._save = save
        finishing = state.task.kind == training_pb2.TASK_KIND_FINISH
        self._tail = EventTail(folder.finish_events if finishing else folder.events, state.offset)
        self._pending: deque[training_pb2.Checkpoint] = deque(maxlen=_MOST_PENDING)
        self._come = asyncio.Event()
        self.said = Said()
        self.waiting = False
        """Whether it has said that it only waits for go."""
        self.all_held = asyncio.Event()
        """Set while no checkpoint waits to be held."""
        self.all_held.set()

    def forget(self) -> None:
        """The file begins anew."""
        self._state.offset = self._tail.offset = 0
        self.said, self.waiting = Said(), False

    async def listen(self) -> None:
        """Takes what was said since."""
        while events := await asyncio.to_thread(self._tail.read):
            for event in events:
                await self._take(event)
            if self.all_held.is_set():
                self._state.offset = self._tail.offset

    async def _take(self, event: training_pb2.WorkerEvent) -> None:
        status = self._state.status
        match event.WhichOneof("body"):
            case "waiting":
                self.waiting = True
            case "port":
                status.port = event.port
            case "link":
                status.link.CopyFrom(event.link)  # goes with the next report: it is worth none of its own
            case "point":
                self._progress.point.CopyFrom(event.point)
                self._progress.samples_per_s = event.samples_per_s
            case "checkpoint":
                self._pending.append(event.checkpoint)
                self._come.set()
                self.all_held.clear()
            case "no_checkpoint":
                self._warn(event.no_checkpoint)
            case "plan":
                status.plan.CopyFrom(event.plan)
            case "error":
                self.said = Said(last_at=time.monotonic())
                await self._on_error(event)
            case "done":
                self.said = Said(event.done, time.monotonic())
                status.results.update(event.done.values)
                status.step = event.done.step

    async def hold_checkpoints(self) -> None:
        """Makes each checkpoint that was written blobs, one after the other. Until cancelled."""
        while True:
            await self._come.wait()
            self._come.clear()
            while self._pending:
                said = self._pending.popleft()
                try:
                    await self._hold(said)
                except (AimeshError, OSError, ValueError) as error:
                    self._warn(f"that of step {said.step} is not held: {error}")
                await uninterrupted(holding.sweep, self._folder, said.step, self._kept())
            self.all_held.set()

    async def _hold(self, said: training_pb2.Checkpoint) -> None:
        state = self._state
        if any(each.step == said.step for each in state.written):
            return  # read again after the agent was started anew
        state.written.insert(0, await holding.hold_checkpoint(self._tools.store, self._folder, state.task, said))
        gone = {each.step for each in holding.outdated(state)}
        state.written = [each for each in state.written if each.step not in gone]
        del state.status.checkpoints[:]
        state.status.checkpoints.extend(holding.reported(state))
        if state.status.message.startswith(_NONE):
            state.status.message = ""
        self._tools.on_change()
        await self._save()

    def _warn(self, why: str) -> None:
        """Says in the task's state that a checkpoint was given up; it trains on."""
        state, task = self._state, self._state.task
        log.warning("task.no_checkpoint", job=task.job, rank=task.rank, reason=why)
        if state.status.state == training_pb2.TASK_STATE_RUNNING:
            last = max([each.step for each in state.written] + [task.resume.step])
            state.status.message = f"{_NONE}{f'since step {last}' if last else 'yet'}: {why}"
            self._tools.on_change()

    def _kept(self) -> set[int]:
        """Steps of the checkpoints that stay on the disk."""
        return {each.step for each in (*self._state.written, *self._pending)}

"""Where one task stands: what it is told to do, and how far it is. A change is reported, and written down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from aimesh.training.v1 import training_pb2
from meshkit.threads import uninterrupted
from node_agent.training.folder import Folder
from node_agent.training.state import TaskState, write
from node_agent.training.tools import Tools

log = structlog.get_logger()

PREPARING = training_pb2.TASK_STATE_PREPARING
READY = training_pb2.TASK_STATE_READY
RUNNING = training_pb2.TASK_STATE_RUNNING
STOPPED = training_pb2.TASK_STATE_STOPPED
SUCCEEDED = training_pb2.TASK_STATE_SUCCEEDED
FAILED = training_pb2.TASK_STATE_FAILED
OVER = (STOPPED, SUCCEEDED, FAILED)


@dataclass
class Standing:
    """What all that deals with one task knows of it."""

    state: TaskState
    folder: Folder
    tools: Tools
    progress: training_pb2.TaskProgress = field(default_factory=training_pb2.TaskProgress)
    leaving: bool = False
    """Whether the agent is to end."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is told something else."""

    _saving: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    """Two that write one file at a time leave half of each."""

    def __post_init__(self) -> None:
        task = self.task
        self.progress.job, self.progress.attempt, self.progress.rank = task.job, task.attempt, task.rank

    @property
    def task(self) -> training_pb2.TrainingTask:
        """As it was assigned last."""
        return self.state.task

    @property
    def status(self) -> training_pb2.TaskStatus:
        """As it is reported."""
        return self.state.status

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status.state in OVER

    @property
    def stopping(self) -> bool:
        """Whether it is to end before it is done."""
        return self.task.stop or self.leaving

    def tell(self, text: str) -> None:
        """Says in its progress what it waits for."""
        self.progress.message = text

    async def set(self, state: training_pb2.TaskState.ValueType, message: str = "") -> None:
        """Reports a state, and writes it down."""
        self.status.state, self.status.message = state, message
        self.tools.on_change()
        await self.save()

    async def fail(self, message: str, *, may_retry: bool, at_ns: int = 0) -> None:
        """Reports that it has failed, and when: at `at_ns` since the epoch, now when that is 0."""
        self.status.may_retry = may_retry
        # The leader counts the steps that are lost by this: progress goes with the node, and the report stays.
        self.status.step = max(self.status.step, self.progress.point.step)
        if at_ns:
            self.status.failed_at.FromNanoseconds(at_ns)
        else:
            self.status.failed_at.GetCurrentTime()
        log.warning("task.failed", job=self.task.job, attempt=self.task.attempt, rank=self.task.rank, reason=message)
        await self.set(FAILED, message)

    async def save(self) -> None:
        """Writes it down for the agent that comes after."""
        try:
            async with self._saving:
                await uninterrupted(write, self.folder, self.state.key, self.state.content())
        except OSError as error:  # the next agent would not know; this one does
            log.warning("task.not_saved", job=self.task.job, reason=str(error))

"""What the tasks of a node work with, and what ends one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node_agent.store import ModelStore
from node_agent.training.fitness import Fitness
from node_agent.training.launcher import Launcher
from node_agent.training.prepare import Preparer
from node_agent.training.state import TaskState


class TaskFailedError(Exception):
    """What ends a task: why, and whether another try could go better."""

    def __init__(self, message: str, *, may_retry: bool) -> None:
        super().__init__(message)
        self.message = message
        self.may_retry = may_retry


@dataclass(frozen=True)
class Tools:
    """What tasks work with."""

    launcher: Launcher
    preparer: Preparer
    store: ModelStore
    node_bytes: int
    """Memory of the node."""
    memory_share: float
    prepare_timeout_s: float
    stop_grace_s: float
    fitness: Fitness
    on_change: Callable[[], None]
    others_gone: Callable[[TaskState], Awaitable[None]]
    """Returns once no older attempt of the same job has a process on this node."""

    @property
    def unfit(self) -> str:
        """Why no worker can run on this node; empty when they can."""
        return self.fitness.unfit

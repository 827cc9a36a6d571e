"""What is done beside a node's tasks, once a second: processes are measured, and the next can be forked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import structlog

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError
from meshkit.threads import uninterrupted
from node_agent.training.work import TaskWork
from node_agent.training.zygotes import Zygotes

log = structlog.get_logger()

_MEASURE_S = 1.0
_ZYGOTE_S = 30.0
"""So long the process that workers are forked from stays after the last was assigned here."""


class GpuMemory(Protocol):
    """What tells which process has how much of the GPUs' memory."""

    def by_process(self) -> dict[int, int]:
        """Bytes by process id. Blocks for some milliseconds."""


@dataclass
class Tending:
    """Looks after the processes of a node's tasks."""

    gpus: GpuMemory
    zygotes: Zygotes
    clock: Callable[[], float] = time.monotonic
    _trained_at: float = float("-inf")
    """When a worker was assigned last."""

    async def tend(self, works: Callable[[], Collection[TaskWork]]) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_MEASURE_S)
            now = list(works())
            if busy := [work for work in now if work.busy]:
                await uninterrupted(self._look, busy)
            await self._see_to_zygote([work for work in now if work.task.kind == training_pb2.TASK_KIND_TRAIN])

    def _look(self, works: list[TaskWork]) -> None:
        on_gpu = self.gpus.by_process()
        for work in works:
            work.measure(on_gpu)

    async def _see_to_zygote(self, trains: list[TaskWork]) -> None:
        """Keeps what the next attempt is forked from while jobs train here, and a little longer."""
        self.zygotes.look()
        if trains:
            self._trained_at = self.clock()
        elif self.clock() - self._trained_at > _ZYGOTE_S:
            await self.zygotes.end()
        for work in trains:
            try:
                await work.warm()
            except (AimeshError, OSError) as error:
                log.warning("zygote.not_started", reason=str(error))

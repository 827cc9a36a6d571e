"""Checkpoint files that a node holds for others: the loss of one node must lose none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from aimesh.training.v1 import training_pb2
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError
from node_agent.training.needs import copies_of
from node_agent.training.tools import Tools

log = structlog.get_logger()


async def hold_copies(
    tools: Tools,
    task: Callable[[], training_pb2.TrainingTask],
    changed: asyncio.Event,
    told: Callable[[str], None],
) -> None:
    """Fetches what `task` says, as long as it says so; looks again when `changed` is set. Until cancelled.

    `told` is called with what it waits for.
    """
    backoff = Backoff(first_s=0.2, most_s=5.0)
    while True:
        missing = [need for need in copies_of(task()) if need.digest not in tools.store.held()]
        if not missing:
            backoff.reset()
            await changed.wait()
            changed.clear()
            continue
        try:
            await tools.preparer.fetch(missing[0], partial(_tell, told, len(missing)))
        except (AimeshError, OSError) as error:
            log.info("task.copy_failed", job=task().job, file=missing[0].place, reason=str(error))
            told(f"{missing[0].place}: {error}")
            await asyncio.sleep(backoff.next_delay())
        else:
            told("")
            tools.on_change()


def _tell(told: Callable[[str], None], left: int, text: str) -> None:
    told(f"{left} checkpoint files to copy, {text}")

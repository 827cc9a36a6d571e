"""Tasks that a node has no more: their folders, logs and checkpoints stay for a while."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from meshkit.threads import uninterrupted
from node_agent.training.folder import TRAINING, TaskKey
from node_agent.training.retention import Retention
from node_agent.training.state import TaskState

log = structlog.get_logger()

_DAY_S = 86_400.0


@dataclass(frozen=True)
class Keeping:
    """Where tasks lie, and how long they stay."""

    data_dir: Path
    keep_days: float

    @property
    def root(self) -> Path:
        """Of all jobs."""
        return self.data_dir / TRAINING


@dataclass
class Retired:
    """What is known of tasks that are assigned no more."""

    keeping: Keeping
    retention: Retention = field(default_factory=Retention)
    """Which jobs the mesh knows."""
    _states: dict[TaskKey, TaskState] = field(default_factory=dict)

    def add(self, state: TaskState) -> None:
        """One more; `retired_at` says since when."""
        self._states[state.key] = state

    def discard(self, key: TaskKey) -> None:
        """One that is assigned again."""
        self._states.pop(key, None)

    def made(self) -> set[str]:
        """Digests of what exists because of them."""
        return {digest for state in self._states.values() for digest in state.made()}

    async def sweep(self, busy: Collection[str], now: float) -> None:
        """Removes the folders of jobs that have had no task here for so long, or that were removed from the mesh.

        Their checkpoints are let go of. Jobs in `busy` stay; `now` is seconds since the epoch.
        """
        latest: dict[str, float] = {}
        for key, state in self._states.items():
            latest[key.job] = max(latest.get(key.job, 0.0), state.retired_at or 0.0)
        for job, at in latest.items():
            old = now - at > self.keeping.keep_days * _DAY_S
            if job not in busy and self.retention.lets_go(job, old=old):
                await uninterrupted(shutil.rmtree, self.keeping.root / job, ignore_errors=True)
                self._states = {key: state for key, state in self._states.items() if key.job != job}
                log.info("task.removed", job=job)

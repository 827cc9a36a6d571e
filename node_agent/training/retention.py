"""What is kept of jobs that have no task here any more: as long as somebody may ask for it, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2

GONE_S = 20.0
"""A job must have been unknown to the mesh for so long: a coordinator that lags behind may not have heard of it yet."""


@dataclass
class Retention:
    """Remembers which jobs the mesh knows. Before anybody has said so, all are taken to be known."""

    clock: Callable[[], float] = time.monotonic
    _known: Collection[str] | None = field(default=None, init=False)
    _unfinished: Collection[str] = field(default=(), init=False)
    _unknown_at: dict[str, float] = field(default_factory=dict, init=False)
    """When a job that is held here was first seen to be unknown."""

    def tell(self, assignments: membership_pb2.Assignments) -> None:
        """Takes what a coordinator says; one of an older version says nothing."""
        if assignments.HasField("jobs"):
            self._known = frozenset(assignments.jobs.ids)
            self._unfinished = frozenset(assignments.jobs.unfinished)

    def lets_go(self, job: str, *, old: bool) -> bool:
        """Whether what is held here of a job is to be removed. Ask again and again.

        At any age when the mesh knows the job no more: it was removed, or many others ended after it. Otherwise when it
        is `old`, unless the job has not ended: one that is paused for long goes on from what lies here.
        """
        if self._gone(job):
            return True
        if not old or self._known is None or job in self._unfinished:
            return False
        self._unknown_at.pop(job, None)
        return True

    def _gone(self, job: str) -> bool:
        if self._known is None or job in self._known:
            self._unknown_at.pop(job, None)
            return False
        now = self.clock()
        if now - self._unknown_at.setdefault(job, now) < GONE_S:
            return False
        del self._unknown_at[job]
        return True

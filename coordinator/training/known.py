"""Which jobs each node may keep something of: folders with logs, and checkpoints. Pure but for what it remembers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aimesh.training.v1 import training_pb2
from coordinator.state import State
from coordinator.training.checkpoints import nodes_of
from coordinator.training.record import MOST_NODES, is_over

KEPT_ENDED = 128
"""Ended jobs that a node is told of, those that ended last: it removes what it has of older ones."""
_EVERY = ""
"""Stands for all nodes: of a job whose record may have forgotten some."""
_Ends = Mapping[str, int]
"""When jobs ended, in nanoseconds since the epoch, by id; 0 for one that has not."""


@dataclass(frozen=True)
class Known:
    """The jobs of one node, sorted by id."""

    ids: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    """Those of them that have not ended."""


NO_JOBS = Known()


@dataclass(frozen=True)
class KnownByNode:
    """The jobs of all nodes."""

    nodes: Mapping[str, Known] = field(default_factory=dict)
    """Of those that have jobs of their own."""
    others: Known = NO_JOBS

    def of(self, node: str) -> Known:
        """The jobs of a node, also of one that is not there yet."""
        return self.nodes.get(node, self.others)


@dataclass
class KnownJobs:
    """Remembers which jobs each node may hold something of: most records stay as they are for ever."""

    _records: Mapping[str, training_pb2.Job] = field(default_factory=dict, init=False)
    _places: dict[str, tuple[frozenset[str], int]] = field(default_factory=dict, init=False)
    """By job: its nodes, and when it ended."""
    _ends: defaultdict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict), init=False)
    """By node."""
    _said: KnownByNode = field(default_factory=KnownByNode, init=False)

    def of(self, state: State) -> KnownByNode:
        """The jobs of each node; the same object as before when none has changed."""
        if state.jobs is self._records:
            return self._said
        before, self._records = self._records, state.jobs
        changed: set[str] = set()
        for job_id in before.keys() | state.jobs.keys():
            job = state.jobs.get(job_id)
            if job is not before.get(job_id):
                changed |= self._moved(job_id, job)
        if changed:
            self._said = self._say(self._ends.keys() | changed if _EVERY in changed else changed)
        return self._said

    def _moved(self, job_id: str, job: training_pb2.Job | None) -> set[str]:
        """Takes a job's new record. The nodes that are told something else because of it."""
        had = self._places.pop(job_id, (frozenset[str](), 0))
        has = _place(job)
        if job is not None:
            self._places[job_id] = has
        if has == had:
            return set()
        for node in had[0] - has[0]:
            del self._ends[node][job_id]
        for node in has[0]:
            self._ends[node][job_id] = has[1]
        return {*had[0], *has[0]}

    def _say(self, nodes: Iterable[str]) -> KnownByNode:
        """What was said with these nodes' part made anew; an object that would be equal stays the one it was."""
        wide = self._ends[_EVERY]
        others = known(wide) if _EVERY in nodes else self._said.others
        said = dict(self._said.nodes)
        for node in {*nodes} - {_EVERY}:
            if not self._ends[node]:
                del self._ends[node]
                said.pop(node, None)
            elif (made := known({**wide, **self._ends[node]})) != said.get(node):
                said[node] = made
        return KnownByNode(said, others)


def known(ends: _Ends) -> Known:
    """What a node is told that may hold something of these jobs: all that have not ended, of the others the newest."""
    unfinished = [job_id for job_id, at in ends.items() if not at]
    over = sorted((job_id for job_id, at in ends.items() if at), key=lambda job_id: (-ends[job_id], job_id))
    return Known(tuple(sorted([*unfinished, *over[:KEPT_ENDED]])), tuple(sorted(unfinished)))


def _place(job: training_pb2.Job | None) -> tuple[frozenset[str], int]:
    """Nodes that ran a worker of a job, or plan it, and when it ended.

    A record remembers so many nodes only: one that is full may have forgotten nodes that hold a checkpoint.
    """
    if job is None:
        return frozenset(), 0
    ended = max(1, job.ended_at.ToNanoseconds()) if is_over(job) else 0
    if len(job.nodes) >= MOST_NODES:
        return frozenset([_EVERY]), ended
    return frozenset((*job.nodes, *nodes_of(job))), ended

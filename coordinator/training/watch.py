"""What the leader remembers of the jobs that run, from look to look: who is silent since when, and how steps go on.

Kept in memory only: a new leader begins anew, which grants everybody another moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.loads import ByNode
from coordinator.state import State
from coordinator.training.orders import FINISH, PLAN, TRAIN, speaks, statuses_of
from coordinator.training.record import FINISHING, PLANNING, PREPARING, TRAINING, busy, is_federated

SILENT_S = 3.0
"""How long a node may be silent, and its worker make no step, before it counts as lost."""
AWAY_S = 10.0
"""And how long in any case: without its agent's word no checkpoint counts, so what is made meanwhile may be lost."""
FORGOTTEN_S = 5.0
"""How long an agent that speaks may say nothing of a worker that runs: one that was started anew looks for it first."""


@dataclass
class _Course:
    """Of one attempt of one job."""

    attempt: tuple[int, int]
    """Its phase and number, as far as they are one course."""
    moved_at: float
    """When its step rose, in seconds of a clock that only rises."""
    step: int = 0
    unseen_at: float = float("-inf")
    """When no node spoke at all: nobody could say then how anybody works."""
    since: dict[int, float] = field(default_factory=dict)
    """By rank, since when nobody speaks of it."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Samples a second of each node's workers, the last that was measured."""


@dataclass
class JobWatch:
    """Counts seconds. `observe` before anything else is asked."""

    _courses: dict[str, _Course] = field(default_factory=dict, init=False)

    def observe(self, state: State, loads: ByNode, now: float) -> None:
        """Takes in a state and the loads of its nodes. `now` is seconds of a clock that only rises."""
        found = {}
        for job_id, job in state.jobs.items():
            if busy(job):
                found[job_id] = self._course(job, now)
                self._note(state, job, found[job_id], now)
                _follow(job, found[job_id], loads, now)
        self._courses = found

    def away(self, state: State, job: training_pb2.Job, now: float) -> dict[int, str]:
        """Ranks that are lost, with the reason."""
        course, found = self._courses.get(job.id), dict[int, str]()
        if course is None or not course.since:
            return found
        works = _works(job, course, now)
        for rank, since in course.since.items():
            node_id = job.attempt.workers[rank].node if rank < len(job.attempt.workers) else ""
            if why := _lost(state, node_id, now - since, works=works):
                found[rank] = why
        return found

    def step(self, job: training_pb2.Job) -> int:
        """The last step that any worker of its attempt made."""
        course = self._courses.get(job.id)
        return course.step if course is not None else 0

    def quiet_s(self, job: training_pb2.Job, now: float) -> float:
        """Seconds since that rose."""
        course = self._courses.get(job.id)
        return now - course.moved_at if course is not None else 0.0

    def speeds(self, job: training_pb2.Job) -> Mapping[str, float]:
        """Samples a second of one worker, by node."""
        course = self._courses.get(job.id)
        return course.speeds if course is not None else {}

    def _course(self, job: training_pb2.Job, now: float) -> _Course:
        before = self._courses.get(job.id)
        attempt = (int(job.phase == PLANNING), job.attempt.number)
        if before is None or before.attempt != attempt:
            speeds = before.speeds if before is not None else {}
            return _Course(attempt, now, job.attempt.from_step, speeds=speeds)
        return before

    def _note(self, state: State, job: training_pb2.Job, course: _Course, now: float) -> None:
        """Who is silent. Before the workers run, an agent may take its time to say something of them."""
        kind = {PLANNING: PLAN, FINISHING: FINISH}.get(job.phase, TRAIN)
        known, expected = statuses_of(state, job, kind), job.phase not in (PLANNING, PREPARING, FINISHING)
        workers = job.attempt.workers if kind == TRAIN else job.attempt.workers[:1]
        silent = {
            worker.rank
            for worker in workers
            if not speaks(state.nodes.get(worker.node)) or (expected and worker.rank not in known)
        }
        course.since = {rank: course.since.get(rank, now) for rank in silent}
        if silent and not any(map(speaks, state.nodes.values())):
            course.unseen_at = now


def _follow(job: training_pb2.Job, course: _Course, loads: ByNode, now: float) -> None:
    """Of a federated job the aggregator makes the rounds: clients speak of the one that is under way."""
    for worker in job.attempt.workers:
        for task in loads.get(worker.node, membership_pb2.Load()).tasks:
            if (task.job, task.attempt, task.rank) != (job.id, job.attempt.number, worker.rank):
                continue
            if task.samples_per_s > 0:
                course.speeds[worker.node] = task.samples_per_s
            if task.point.step > course.step and (worker.rank == 0 or not is_federated(job)):
                course.step, course.moved_at = task.point.step, now


def _works(job: training_pb2.Job, course: _Course, now: float) -> bool:
    """Whether all workers are seen at work by those whose agents speak: a step ends for all at once, or for none.

    So they are taken to be while no agent speaks that could say so, or take a place. A federated job's rounds end
    without a client too.
    """
    steps = job.phase == TRAINING and not is_federated(job)
    return now - max(course.unseen_at, course.moved_at if steps else course.unseen_at) < SILENT_S


def _lost(state: State, node_id: str, silent_s: float, *, works: bool) -> str:
    """Why a rank of which nobody has spoken for so long is lost; empty while it may come back.

    One that works has longer, as far as that is known: its agent may take its time to start anew.
    """
    node, member = state.nodes.get(node_id), state.members.get(node_id)
    if member is None and node is None:
        return "the node has left"
    if node is None:
        dead = member is not None and member.state == membership_pb2.NODE_STATE_DEAD
        return "the node is dead" if dead or silent_s >= SILENT_S else ""
    if speaks(node):
        return "its agent knows it no more" if silent_s >= FORGOTTEN_S else ""
    patience_s = AWAY_S if works else SILENT_S
    return "the node is silent" if silent_s >= patience_s and not state.braked else ""

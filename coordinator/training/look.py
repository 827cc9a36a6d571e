"""One look at all jobs of a state: what becomes of each next. Pure, given what the leader remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from aimesh.training.v1 import training_pb2
from coordinator.placement import Placement
from coordinator.state import State
from coordinator.training.advance import advance
from coordinator.training.losses import FAILED
from coordinator.training.needs import least_workers
from coordinator.training.orders import FINISH, PLAN, TRAIN, held_of, speaks, statuses_of
from coordinator.training.record import (
    FINISHING,
    PAUSED,
    PLANNING,
    PREPARING,
    QUEUED,
    STOPPING,
    attempting,
    copy,
    is_federated,
)
from coordinator.training.rooms import Rooms
from coordinator.training.schedule import (
    Offer,
    crowded_out,
    in_turn,
    may_give_way,
    offer,
    preempted,
    to_keep,
    waits_long,
)
from coordinator.training.seen import Move, Seen
from coordinator.training.versions import next_version
from coordinator.training.watch import JobWatch
from coordinator.training.widening import widest


@dataclass(frozen=True)
class Look:
    """What one look is made at."""

    state: State
    watch: JobWatch
    now: float
    """Seconds of a clock that only rises, the watch's."""
    now_ns: int
    """Nanoseconds since the epoch."""


def moves(look: Look, placement: Placement, each: Callable[[training_pb2.Job, Seen], Move | None]) -> list[Move]:
    """The next move of every job that has one, the first in turn first; each leaves the next what it does not take.

    `each` works out one move: it may keep its own errors to itself.
    """
    jobs = [job for job in in_turn(look.state.jobs.values()) if job.state != PAUSED]
    if not jobs:
        return []
    rooms = Rooms(look.state, placement)
    crowded = crowded_out(rooms, jobs)
    evicted, promised = _preempted(rooms, jobs)
    evicted.update(crowded)
    found, kept = [], False
    for job in jobs:
        patient = not kept and job.id not in promised and waits_long(job, look.now_ns)
        keep = to_keep(job, rooms) if patient else []  # of one job: it has all in the end, and then the next
        move = each(job, see(look, job, rooms, evicted, promised.get(job.id, ""), keep))
        if move is not None:
            rooms.occupy(move.job)
            found.append(move)
        if keep and (move is None or move.job.phase == QUEUED):
            rooms.keep(job.id, keep)
            kept = True
        after = move.job if move is not None else job
        if after.phase == PLANNING:
            _hold(after, after.attempt.workers[: least_workers(after)], rooms)
        if after.phase == STOPPING and not after.order:
            _hold_more(after, rooms)
    return found


def decide(job: training_pb2.Job, seen: Seen) -> Move | None:
    """The next move of one job."""
    return advance(job, seen)


def see(
    look: Look,
    job: training_pb2.Job,
    rooms: Rooms,
    evicted: Mapping[str, str],
    promised: str = "",
    keep: Sequence[str] = (),
) -> Seen:
    """What is seen of a job. `promised` says which nodes it waits for, when others are giving them up; `keep` are those
    that are kept for it from now on."""
    state, watch = look.state, look.watch

    def offered(wanted: training_pb2.Job) -> Offer:
        found = Offer(reason=promised) if promised else offer(wanted, rooms, watch.speeds(job))
        if keep and not found.workers:
            return replace(found, reason=f"{found.reason}; what becomes free on {', '.join(keep)} is kept for it")
        return found

    seen = Seen(
        now_ns=look.now_ns,
        away=watch.away(state, job, look.now),
        evict=evicted.get(job.id, ""),
        offer=offered,
        model=lambda: next_version(state, job.spec),
    )
    if attempting(job):
        seen = replace(
            seen,
            statuses=statuses_of(state, job),
            held=held_of(state, job),
            step=watch.step(job),
            quiet_s=watch.quiet_s(job, look.now),
        )
    if job.phase == PLANNING:
        return replace(seen, planning=statuses_of(state, job, PLAN).get(0))
    if job.phase == FINISHING:
        return replace(seen, finish=statuses_of(state, job, FINISH).get(0))
    if job.phase == QUEUED and not job.HasField("plan"):
        return replace(seen, planned_elsewhere=_planned_elsewhere(state, job))
    if job.phase == PREPARING and not is_federated(job):
        return replace(seen, late=_late(state, job))
    return seen


def unheld(state: State, job: training_pb2.Job) -> list[training_pb2.CheckpointFile]:
    """What an attempt is to go on from and no node that speaks holds."""
    wanted = {file.digest: file for file in job.attempt.resume.files}
    for node in state.nodes.values() if wanted else ():
        if speaks(node):
            for digest in node.report.blobs:
                wanted.pop(digest, None)
    return list(wanted.values())


def _preempted(rooms: Rooms, jobs: Iterable[training_pb2.Job]) -> tuple[dict[str, str], dict[str, str]]:
    """Jobs that give way for the first in turn that waits and that this helps, and what that one waits for.

    Its nodes are held for it, so that none behind it takes them.
    """
    known = list(jobs)
    for job in known:
        if job.phase != QUEUED or job.order or not any(may_give_way(each, job) for each in known):
            continue
        if offer(job, rooms).workers:
            continue
        given, found = preempted(job, rooms, known)
        if found.workers:
            _hold(job, found.workers, rooms)
            nodes = ", ".join(dict.fromkeys(worker.node for worker in found.workers))
            why = f"gives its nodes to {job.id}, whose priority {job.spec.priority} is higher"
            return dict.fromkeys(given, why), {job.id: f"waits until jobs of lower priority have left {nodes}"}
    return {}, {}


def _hold(job: training_pb2.Job, workers: Sequence[training_pb2.Worker], rooms: Rooms) -> None:
    """Takes the places that a job will have in place of what it has, so that none behind it does."""
    held = copy(job)
    held.id, held.phase = f"held for {job.id}", PREPARING
    held.attempt.CopyFrom(training_pb2.Attempt(workers=workers))
    rooms.release(job.id)
    rooms.occupy(held)


def _hold_more(job: training_pb2.Job, rooms: Rooms) -> None:
    """Takes the places that a job which is about to go on will have beside those that it still has: it may have stopped
    for them, and of several jobs that could use a node one is to stop for it."""
    has = {_place(worker) for worker in job.attempt.workers}
    wide, found = widest(job, lambda wanted: offer(wanted, rooms))
    held = copy(wide)
    held.id, held.phase = f"held beside {job.id}", PREPARING
    held.attempt.CopyFrom(training_pb2.Attempt(workers=[each for each in found.workers if _place(each) not in has]))
    rooms.occupy(job)  # by the plan that its workers still run by
    rooms.occupy(held)


def _place(worker: training_pb2.Worker) -> tuple[str, tuple[int, ...]]:
    return worker.node, tuple(worker.gpus)


def _planned_elsewhere(state: State, job: training_pb2.Job) -> bool:
    return any(
        status.job == job.id and status.kind == PLAN
        for node in state.nodes.values()
        if speaks(node)
        for status in node.report.tasks
    )


def _late(state: State, job: training_pb2.Job) -> list[training_pb2.TaskStatus]:
    nodes = dict.fromkeys([*job.nodes, *(worker.node for worker in job.attempt.workers)])
    return [
        status
        for node_id in nodes
        if node_id in state.nodes and node_id in job.trained_on  # of others the next attempt finds out what is wrong
        for status in state.nodes[node_id].report.tasks
        if (status.job, status.attempt, status.kind) == (job.id, job.attempt.number - 1, TRAIN)
        and status.state == FAILED
        and not status.may_retry
    ]

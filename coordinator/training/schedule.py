"""Which nodes a job may have, and which jobs must give theirs up: all workers or none, inference first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.training.needs import fitting, least_workers, most_workers, need_of, shares_nodes
from coordinator.training.record import FINISHING, PREPARING, QUEUED, STOPPING, TRAINING, is_over, waited_s
from coordinator.training.rooms import Room, Rooms

LIKE = 1.1
"""Nodes of which none is so many times as fast as another count as equally fast: what is measured varies."""
PATIENCE_S = 600.0
"""A job that has waited for longer keeps what becomes free on the nodes that it needs, before smaller ones take it."""
_SHOWN = 5


@dataclass(frozen=True)
class Offer:
    """What a job may have at this moment."""

    workers: tuple[training_pb2.Worker, ...] = ()
    """By rank; none when it has to wait."""
    reason: str = ""
    """Why it has to wait."""


def in_turn(jobs: Iterable[training_pb2.Job]) -> list[training_pb2.Job]:
    """Jobs that are not over, in the order in which they are given nodes: by priority, then by age."""
    waiting = [job for job in jobs if not is_over(job)]
    return sorted(waiting, key=lambda job: (-job.spec.priority, job.created_at.ToNanoseconds(), job.id))


def offer(job: training_pb2.Job, rooms: Rooms, speeds: Mapping[str, float] | None = None) -> Offer:
    """The nodes for a new attempt of a job, whose own present workers do not count.

    As many as it may have, at least as many as it must have, those first that hold its checkpoint and that it ran on.
    `speeds` are samples a second as measured, by node.
    """
    least = least_workers(job)
    rooms.release(job.id)
    found, reasons = _places(job, _preferred(job, rooms.by_node))
    rooms.occupy(job)
    if len(found) < least:
        return Offer(reason=_waiting(least, len(found), reasons))
    return Offer(tuple(_workers(job, rooms, found[: fitting(job, len(found))], speeds or {})))


def waits_long(job: training_pb2.Job, now_ns: int) -> bool:
    """Whether a job has waited for nodes for so long that others of its priority may not pass it any more.

    The wait counts from when it was first queued, through planning and attempts that never trained.
    """
    return job.phase == QUEUED and not job.order and waited_s(job, now_ns) > PATIENCE_S


def to_keep(job: training_pb2.Job, rooms: Rooms) -> list[str]:
    """The nodes to keep for a job that has waited for long, as many as it needs; none when it need not wait, or would
    have to without any other job.

    Those that could take a worker now come first. So none is lost again that has become free, until it has all.
    """
    least = least_workers(job)
    now, _ = _places(job, _preferred(job, rooms.by_node))
    if len(now) >= least:
        return []
    free, empty = {node for node, _ in now}, rooms.without_jobs()
    order = sorted(_preferred(job, empty), key=lambda room: room.node.id not in free)
    found, _ = _places(job, order)
    return list(dict.fromkeys(node for node, _ in found[:least])) if len(found) >= least else []


def preempted(job: training_pb2.Job, rooms: Rooms, jobs: Iterable[training_pb2.Job]) -> tuple[list[str], Offer]:
    """Jobs of lower priority that must give way for a job that has to wait, and what it will have then.

    Those of the lowest priority first, of these the youngest; those that give way already are counted on. None when
    all of them together would not help.
    """
    lower = [each for each in jobs if may_give_way(each, job)]
    lower.sort(key=lambda each: (each.phase != STOPPING, each.spec.priority, -each.created_at.ToNanoseconds(), each.id))
    gone: list[training_pb2.Job] = []
    for each in lower:
        if offer(job, rooms).workers:
            break
        rooms.release(each.id)
        gone.append(each)
    found, needed = offer(job, rooms), []
    for each in gone if found.workers else ():
        rooms.occupy(each)
        if not (again := offer(job, rooms)).workers:
            rooms.release(each.id)
            needed.append(each)
        else:
            found = again
    for each in gone:
        rooms.occupy(each)
    return [each.id for each in needed if each.phase != STOPPING], found


def crowded_out(rooms: Rooms, jobs: Iterable[training_pb2.Job]) -> dict[str, str]:
    """Jobs whose room is needed for replicas, or whose nodes are being emptied, by id, with the reason."""
    found: dict[str, str] = {}
    known = [job for job in jobs if _gives_way(job) or job.phase == FINISHING]
    for job in known:
        for worker in job.attempt.workers:
            if job.phase in (PREPARING, TRAINING) and (why := _emptied(rooms, worker.node)):
                found[job.id] = f"{worker.node} {why}"
    order = sorted(
        (job for job in known if not job.spec.reserved),
        key=lambda job: (
            job.phase != STOPPING,
            job.id not in found,
            job.spec.priority,
            -job.created_at.ToNanoseconds(),
            job.id,
        ),
    )
    released = []
    for job in order:
        short = next((f"{w.node}: {why}" for w in job.attempt.workers if (why := _short(rooms, w.node))), "")
        if short or job.id in found:
            rooms.release(job.id)
            released.append(job)
        if short and job.phase in (PREPARING, TRAINING):
            found.setdefault(job.id, f"its room is needed for models on {short}")
    for job in released:
        rooms.occupy(job)
    return found


def may_give_way(each: training_pb2.Job, job: training_pb2.Job) -> bool:
    """Whether a job may have to give its nodes to another."""
    return each.spec.priority < job.spec.priority and _gives_way(each)


def _gives_way(job: training_pb2.Job) -> bool:
    return job.phase in (PREPARING, TRAINING, STOPPING) and not job.spec.reserved


def _emptied(rooms: Rooms, node_id: str) -> str:
    node = rooms.state.nodes.get(node_id)
    if node_id in rooms.state.drains:
        return "is drained"
    return "leaves" if node is not None and node.state == membership_pb2.NODE_STATE_DRAINING else ""


def _short(rooms: Rooms, node_id: str) -> str:
    room = rooms.by_node.get(node_id)
    return room.crowded() if room is not None else ""


_Places = list[tuple[str, list[int]]]
"""Nodes with the GPUs there, one a worker."""


def _places(job: training_pb2.Job, rooms: Iterable[Room]) -> tuple[_Places, dict[str, str]]:
    """Where a job's workers have room, these rooms in this order, and why they have none elsewhere, by node."""
    need, most = need_of(job), most_workers(job)
    found: _Places = []
    reasons: dict[str, str] = {}
    for room in rooms:
        if len(found) >= most:
            break
        if why := room.lacks(job, need):
            reasons[room.node.id] = why
            continue
        spare = replace(room, gpus=dict(room.gpus), owned=dict(room.owned))
        found.append((room.node.id, spare.take(job.id, need)))
        while shares_nodes(job) and len(found) < most and not spare.lacks(job, need):
            found.append((room.node.id, spare.take(job.id, need)))
    return found, reasons


def _preferred(job: training_pb2.Job, rooms: Mapping[str, Room]) -> list[Room]:
    """Nodes, those first that hold most of the checkpoint, that ran the job before, that have most room."""
    blobs, ran = {file.digest for file in job.checkpoint.files}, set(job.nodes)

    def order(room: Room) -> tuple[int, bool, int, str]:
        held = len(blobs.intersection(room.node.report.blobs)) if blobs else 0
        return -held, room.node.id not in ran, -room.memory, room.node.id

    return sorted(rooms.values(), key=order)


def _workers(
    job: training_pb2.Job, rooms: Rooms, found: list[tuple[str, list[int]]], speeds: Mapping[str, float]
) -> list[training_pb2.Worker]:
    """Ranks stay where they were as far as they can: a federated client's number is its data's."""
    before = {node: place for place, node in enumerate(job.nodes)}
    found = sorted(found, key=lambda each: (before.get(each[0], len(before)), each[0], each[1]))
    known = {worker.node: worker.speed for worker in job.attempt.workers if worker.speed} | dict(speeds)
    speed_of = _speeds([node for node, _ in found], known)
    made = []
    for rank, (node, gpus) in enumerate(found):
        room = rooms.by_node[node]
        worker = training_pb2.Worker(
            rank=rank, node=node, address=room.node.address, gpus=gpus, speed=speed_of.get(node, 0.0)
        )
        if not job.HasField("plan"):  # what it is planned by
            _fill(worker, room, sum(other == node for other, _ in found))
        made.append(worker)
    return made


def _fill(worker: training_pb2.Worker, room: Room, here: int) -> None:
    """What is free for one of so many workers of its job on a node, beside replicas and other jobs."""
    worker.memory_bytes, worker.cpu_cores = max(0, room.memory) // here, max(0.0, room.cores) / here
    worker.gpu_memory_bytes = min((max(0, room.gpus[index]) for index in worker.gpus), default=0)
    worker.agent_port = room.node.port


def _speeds(nodes: list[str], known: Mapping[str, float]) -> dict[str, float]:
    """Each node's speed; a new one is as fast as the others in the mean. None when they are alike or unknown."""
    measured = [known[node] for node in nodes if known.get(node, 0.0) > 0]
    if not measured or max(measured) < LIKE * min(measured):
        return {}
    mean = sum(measured) / len(measured)
    return {node: float(f"{known.get(node, 0.0) or mean:.2g}") for node in nodes}


def _waiting(least: int, can: int, reasons: Mapping[str, str]) -> str:
    what = "1 worker" if least == 1 else f"{least} workers"
    shown = "; ".join(f"{node}: {why}" for node, why in sorted(reasons.items())[:_SHOWN])
    more = f"; and {len(reasons) - _SHOWN} more nodes" if len(reasons) > _SHOWN else ""
    if not shown:
        shown = "without GPUs of their own, one on each node" if can else "no node is there"
    return f"waits for {what}, there is room for {can} ({shown}{more})"

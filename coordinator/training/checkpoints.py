"""Which checkpoint of a running attempt is whole, who holds it, and who is to hold a copy of whose part. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from aimesh.training.v1 import training_pb2
from coordinator.training.record import is_federated

Statuses = Mapping[int, training_pb2.TaskStatus]
"""What agents say of an attempt's workers, by rank."""
Held = Mapping[str, Collection[str]]
"""Digests of the blobs that each node holds, by node id."""
COPIES = 2
"""Nodes that are to hold each part, where there are so many."""


def writers(job: training_pb2.Job) -> list[int]:
    """Ranks that write parts of a checkpoint: all, of a federated job the aggregator."""
    return [0] if is_federated(job) else [worker.rank for worker in job.attempt.workers]


def nodes_of(job: training_pb2.Job) -> list[str]:
    """The nodes of the newest attempt in the order of their first ranks, each once."""
    return list(dict.fromkeys(worker.node for worker in job.attempt.workers))


def newest(job: training_pb2.Job, statuses: Statuses, held: Held, copies: int) -> training_pb2.Checkpoint | None:
    """The newest checkpoint after the recorded one of which every part is held by so many nodes; None without one."""
    for step in sorted(_steps(job, statuses), reverse=True):
        made = _whole(job, statuses, step)
        if all(holders(file.digest, held) >= copies for file in made.files):
            return made
    return None


def copying(job: training_pb2.Job, statuses: Statuses) -> int:
    """Step of the checkpoint that is copied before all others, and that agents keep until another is named; 0 for none.

    The oldest after the recorded one of which every writer reports its part: so it stays the same while newer ones are
    written, however fast, and becomes whole.
    """
    return min(_steps(job, statuses), default=0)


def copies_needed(live: Collection[str]) -> int:
    """How many nodes must hold each part, of those that are there."""
    return max(1, min(COPIES, len(live)))


def holders(digest: str, held: Held) -> int:
    """How many nodes hold a blob."""
    return sum(digest in blobs for blobs in held.values())


def copies_of(
    job: training_pb2.Job, statuses: Statuses, held: Held, live: Collection[str]
) -> dict[int, list[training_pb2.CheckpointFile]]:
    """What each rank's agent is to hold beside its own parts, in the order in which it is to fetch them.

    A node's parts go to the next node that is there, in the order of ranks. What a node holds of the recorded
    checkpoint it goes on holding.
    """
    first = {worker.node: worker.rank for worker in reversed(job.attempt.workers)}
    found: dict[int, dict[str, training_pb2.CheckpointFile]] = {}
    for rank in writers(job):
        own = job.attempt.workers[rank].node
        keeper = next((node for node in _after(nodes_of(job), own) if node != own and node in live), None)
        if keeper is None or rank not in statuses:
            continue
        for checkpoint in statuses[rank].checkpoints:
            for file in checkpoint.files:
                found.setdefault(first[keeper], {})[file.digest] = file
    if job.HasField("checkpoint") and job.checkpoint.attempt == job.attempt.number:
        for file in job.checkpoint.files:
            for node in held:
                if file.digest in held[node] and node in first:
                    found.setdefault(first[node], {})[file.digest] = file
    step = copying(job, statuses)
    urgent = {file.digest for file in _whole(job, statuses, step).files} if step else set[str]()
    return {
        rank: [files[digest] for digest in sorted(files, key=lambda each: (each not in urgent, each))]
        for rank, files in found.items()
    }


def _after(nodes: Sequence[str], node: str) -> Iterable[str]:
    """The nodes in a circle, from behind one of them on."""
    start = nodes.index(node) + 1
    return (*nodes[start:], *nodes[:start])


def _steps(job: training_pb2.Job, statuses: Statuses) -> set[int]:
    """Steps of which every writer has reported its part, after the recorded one."""
    least = job.checkpoint.step if job.HasField("checkpoint") else 0
    reported = [
        {each.step for each in statuses[rank].checkpoints if each.step > least and each.files}
        if rank in statuses
        else set[int]()
        for rank in writers(job)
    ]
    return set.intersection(*reported) if reported else set()


def _whole(job: training_pb2.Job, statuses: Statuses, step: int) -> training_pb2.Checkpoint:
    files = {
        file.path: file
        for rank in writers(job)
        for checkpoint in statuses[rank].checkpoints
        if checkpoint.step == step
        for file in checkpoint.files
    }
    return training_pb2.Checkpoint(
        step=step,
        files=[files[path] for path in sorted(files)],
        attempt=job.attempt.number,
        world_size=len(job.attempt.workers),
    )

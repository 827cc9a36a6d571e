"""What each node is to do for training jobs: a pure function of the records and of what the nodes report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.state import State
from coordinator.training.checkpoints import Statuses, copies_of, copying, nodes_of
from coordinator.training.record import FINISHING, PLANNING, attempting, busy

PLAN = training_pb2.TASK_KIND_PLAN
TRAIN = training_pb2.TASK_KIND_TRAIN
FINISH = training_pb2.TASK_KIND_FINISH
Tasks = tuple[training_pb2.TrainingTask, ...]
ByNode = Mapping[str, Tasks]


@dataclass
class Orders:
    """Remembers the tasks of each job while nothing that they are made from has changed.

    Some node of a large mesh changes all the time: what a look costs is the number of nodes that train.
    """

    _jobs: dict[str, tuple[tuple[Any, ...], dict[str, Tasks]]] = field(default_factory=dict, init=False)
    _all: ByNode = field(default_factory=dict, init=False)
    _records: Mapping[str, training_pb2.Job] = field(default_factory=dict, init=False)
    _busy: list[training_pb2.Job] = field(default_factory=list, init=False)
    """Those of the records whose jobs are busy: most have ended long ago."""

    def of(self, state: State) -> ByNode:
        """The tasks of each node that has some, by id; the same object as before when none has changed."""
        if state.jobs is not self._records:
            self._records, self._busy = state.jobs, [job for job in state.jobs.values() if busy(job)]
        known = {}
        changed = self._jobs.keys() - {job.id for job in self._busy}
        for job in self._busy:
            basis, before = _basis(state, job), self._jobs.get(job.id)
            if before is not None and _same(before[0], basis):
                known[job.id] = before
                continue
            known[job.id] = basis, _kept(_tasks(state, job), before[1] if before is not None else {})
            if before is None or known[job.id][1] != before[1]:
                changed.add(job.id)
        self._jobs = known
        if changed:
            self._all = _merged([tasks for _, (_, tasks) in sorted(known.items())])
        return self._all


def statuses_of(state: State, job: training_pb2.Job, kind: training_pb2.TaskKind.ValueType = TRAIN) -> Statuses:
    """What agents say of the newest attempt's workers, by rank; of nodes that are away, what they said last."""
    attempt = 0 if kind == PLAN else job.attempt.number
    found = {}
    for worker in job.attempt.workers:
        node = state.nodes.get(worker.node) or state.members.get(worker.node)
        for status in node.report.tasks if node is not None else ():
            if (status.job, status.attempt, status.rank, status.kind) == (job.id, attempt, worker.rank, kind):
                found[worker.rank] = status
    return found


def held_of(state: State, job: training_pb2.Job) -> dict[str, Collection[str]]:
    """Digests that the newest attempt's nodes hold, of those that are there."""
    return {node: frozenset(state.nodes[node].report.blobs) for node in live_nodes(state, job)}


def live_nodes(state: State, job: training_pb2.Job) -> list[str]:
    """The newest attempt's nodes whose agents speak, in the order of ranks."""
    return [node for node in nodes_of(job) if speaks(state.nodes.get(node))]


def speaks(node: membership_pb2.Node | None) -> bool:
    """Whether a node's agent is in session and not silent."""
    return node is not None and node.state not in (
        membership_pb2.NODE_STATE_SUSPECT,
        membership_pb2.NODE_STATE_DEAD,
        membership_pb2.NODE_STATE_UNSPECIFIED,
    )


def base_of(state: State, spec: training_pb2.JobSpec) -> training_pb2.BaseModel | None:
    """The files of the version that a job starts from; None without one."""
    name, _, number = spec.base_model.partition(":")
    version = state.versions.get((name, number))
    if version is None:
        return None
    files = [
        training_pb2.CheckpointFile(path=file.path, digest=file.digest, bytes=file.size, chunk_list=file.chunks)
        for file in version.files
    ]
    return training_pb2.BaseModel(model=spec.base_model, files=files)


def _basis(state: State, job: training_pb2.Job) -> tuple[Any, ...]:
    """Everything that the tasks of a job are made from, to be compared by identity."""
    name, _, number = job.spec.base_model.partition(":")
    strategies = state.strategies if job.phase == PLANNING else None
    return job, state.versions.get((name, number)), strategies, *(state.nodes.get(node) for node in nodes_of(job))


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(before) == len(now) and all(old is new for old, new in zip(before, now, strict=True))


def _tasks(state: State, job: training_pb2.Job) -> dict[str, Tasks]:
    if job.phase == PLANNING:
        return {job.attempt.workers[0].node: (_plan_task(state, job),)}
    if job.phase == FINISHING:
        made = _task(state, job, 0, FINISH)
        made.model = job.model
        return {job.attempt.workers[0].node: (made,)}
    if not attempting(job):
        return {}
    statuses, held, live = statuses_of(state, job), held_of(state, job), live_nodes(state, job)
    copies, step = copies_of(job, statuses, held, live), copying(job, statuses)
    found: defaultdict[str, list[training_pb2.TrainingTask]] = defaultdict(list)
    for worker in job.attempt.workers:
        made = _task(state, job, worker.rank, TRAIN)
        made.copies.extend(copies.get(worker.rank, ()))
        made.copying = step
        found[worker.node].append(made)
    return {node: tuple(tasks) for node, tasks in found.items()}


def _plan_task(state: State, job: training_pb2.Job) -> training_pb2.TrainingTask:
    return training_pb2.TrainingTask(
        job=job.id,
        kind=PLAN,
        go=True,
        spec=job.spec,
        workers=job.attempt.workers,
        base=base_of(state, job.spec),
        strategies=state.strategies,
    )


def _task(
    state: State, job: training_pb2.Job, rank: int, kind: training_pb2.TaskKind.ValueType
) -> training_pb2.TrainingTask:
    return training_pb2.TrainingTask(
        job=job.id,
        attempt=job.attempt.number,
        rank=rank,
        kind=kind,
        go=job.attempt.go,
        stop=job.attempt.stop,
        spec=job.spec,
        plan=job.plan,
        workers=job.attempt.workers,
        rendezvous=job.attempt.rendezvous,
        resume=job.attempt.resume if job.attempt.HasField("resume") else None,
        base=base_of(state, job.spec),
    )


def _kept(made: dict[str, Tasks], before: dict[str, Tasks]) -> dict[str, Tasks]:
    """The tasks, as the objects that they were before where they are equal."""
    return {node: before[node] if before.get(node) == tasks else tasks for node, tasks in made.items()}


def _merged(parts: list[dict[str, Tasks]]) -> ByNode:
    found: defaultdict[str, list[training_pb2.TrainingTask]] = defaultdict(list)
    for part in parts:
        for node, tasks in part.items():
            found[node].extend(tasks)
    return {node: tuple(tasks) for node, tasks in found.items()}

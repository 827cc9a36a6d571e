"""A mesh without processes: records, nodes that carry out their tasks step by step, and a leader that looks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.loads import ByNode
from coordinator.placement import place
from coordinator.state import State
from coordinator.training.advance import advance
from coordinator.training.attempts import succeeded
from coordinator.training.check import check_job
from coordinator.training.look import Look, moves, unheld
from coordinator.training.orders import FINISH, PLAN, TRAIN, Orders, statuses_of
from coordinator.training.record import FINISHING, PENDING, QUEUED, timestamp
from coordinator.training.seen import Move, Seen
from coordinator.training.watch import JobWatch

GIB = 1024**3
SECOND = 10**9
STEPS = 60
EVERY = 10
"""Steps between two checkpoints."""
READY = training_pb2.TASK_STATE_READY
PREPARING = training_pb2.TASK_STATE_PREPARING
RUNNING = training_pb2.TASK_STATE_RUNNING
STOPPED = training_pb2.TASK_STATE_STOPPED
SUCCEEDED = training_pb2.TASK_STATE_SUCCEEDED
FAILED = training_pb2.TASK_STATE_FAILED
Key = tuple[str, int, int, int]
"""Job, attempt, rank, kind of a task."""


def node(node_id: str, memory: int = 8, gpus: int = 0, **labels: str) -> membership_pb2.Node:
    """A node that is ready, with memory in GiB."""
    return membership_pb2.Node(
        id=node_id,
        state=membership_pb2.NODE_STATE_READY,
        address="10.0.0.1",
        port=50,
        epoch=1,
        labels=labels,
        runtimes={"torch": "2.9", "training": "2.9"},
        capacity=membership_pb2.Capacity(
            cpu_cores=4,
            memory_bytes=memory * GIB,
            gpus=[membership_pb2.Gpu(index=index, memory_bytes=16 * GIB) for index in range(gpus)],
        ),
        report=membership_pb2.ModelReport(triton=membership_pb2.Triton(state=membership_pb2.TRITON_STATE_READY)),
    )


def spec(name: str = "job", least: int = 1, most: int = 0, memory: int = 2, **changes: object) -> training_pb2.JobSpec:
    """What is asked for, checked; memory of a worker in GiB."""
    made = training_pb2.JobSpec(
        name=name,
        task="classifier",
        data=training_pb2.Data(builtin="digits"),
        steps=STEPS,
        resources=training_pb2.Resources(min_workers=least, max_workers=most, memory_bytes=memory * GIB),
    )
    if "entry" in changes:
        raise ValueError(changes)
    made.MergeFrom(training_pb2.JobSpec(**changes))  # type: ignore[arg-type]
    return check_job(made)


def plan_of(asked: training_pb2.JobSpec) -> training_pb2.JobPlan:
    """What the planner says of every job."""
    federated = asked.strategy == training_pb2.STRATEGY_FEDERATED
    return training_pb2.JobPlan(
        strategy=training_pb2.STRATEGY_FEDERATED if federated else training_pb2.STRATEGY_DDP,
        steps=asked.steps,
        situation="small/small/2/fast",
        alone_samples_per_s=100,
    )


def growing(asked: training_pb2.JobSpec, *froms: tuple[training_pb2.Strategy.ValueType, int]) -> training_pb2.JobPlan:
    """A plan for the one node that is free: alone, and each of these strategies from so many workers on."""
    made = plan_of(asked)
    made.strategy, made.workers = training_pb2.STRATEGY_SINGLE, 1
    for strategy, least in froms:
        made.wider.add(
            strategy=strategy, from_workers=least, workers=asked.resources.max_workers, situation=f"of {least} nodes"
        )
    return made


@dataclass
class World:
    """Everything that there is. The leader's writes all work out; who has died is in `dead`."""

    nodes: dict[str, membership_pb2.Node]
    jobs: dict[str, training_pb2.Job] = field(default_factory=dict)
    now_ns: int = 1_700_000_000 * SECOND
    watch: JobWatch = field(default_factory=JobWatch)
    dead: set[str] = field(default_factory=set)
    statuses: dict[str, dict[Key, training_pb2.TaskStatus]] = field(default_factory=dict)
    steps: dict[Key, int] = field(default_factory=dict)
    blobs: dict[str, set[str]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    """Blobs that coordinators hold."""
    history: list[training_pb2.Job] = field(default_factory=list)
    lacked: set[str] = field(default_factory=set)
    state: State = field(default_factory=State)
    drains: dict[str, int] = field(default_factory=dict)
    plans: dict[str, training_pb2.JobPlan] = field(default_factory=dict)
    """By job, what the planner says of it, where it is not what it says of every job."""

    def __post_init__(self) -> None:
        self.seen()

    @property
    def now(self) -> float:
        """Seconds of the leader's clock."""
        return self.now_ns / SECOND

    def submit(self, asked: training_pb2.JobSpec, job_id: str = "") -> str:
        """Records a job."""
        made = training_pb2.Job(
            id=job_id or f"{asked.name}-{len(self.jobs)}",
            spec=asked,
            state=PENDING,
            phase=QUEUED,
            created_at=timestamp(self.now_ns + len(self.jobs)),
            phase_at=timestamp(self.now_ns),
            waiting_since=timestamp(self.now_ns),
        )
        self.write(made)
        return made.id

    def write(self, job: training_pb2.Job) -> None:
        """Puts a record in place of the one before."""
        self.jobs = {**self.jobs, job.id: job}
        self.history.append(job)
        self.seen()

    def seen(self) -> State:
        """The state as the mirror holds it now."""
        known = {node_id: self._reported(each) for node_id, each in self.nodes.items()}
        self.state = replace(
            self.state, nodes=known, members=known, jobs=self.jobs, drains=self.drains, revision=self.state.revision + 1
        )
        return self.state

    def lead(self, *, times: int = 1) -> None:
        """The leader looks, and writes every move; then it records results."""
        for _ in range(times):
            state = self.seen()
            self.watch.observe(state, self.loads(), self.now)
            views: dict[str, Seen] = {}

            def one(job: training_pb2.Job, seen: Seen, views: dict[str, Seen] = views) -> Move | None:
                views[job.id] = seen
                return advance(job, seen)

            look = Look(state, self.watch, self.now, self.now_ns)
            for found in moves(look, place(state), one):
                self._carry_out(state, found, views[found.job.id])
            for job in list(self.jobs.values()):
                status = statuses_of(self.seen(), job, FINISH).get(0) if job.phase == FINISHING else None
                if status is not None and status.state == SUCCEEDED and not job.order:
                    self.write(succeeded(job, self.now_ns))

    def agents(self, *names: str) -> None:
        """These nodes' agents, or all, do one thing for each of their tasks."""
        tasks = Orders().of(self.seen())
        for name in names or sorted(self.nodes):
            if name in self.dead or name not in self.nodes:
                continue
            wanted = {(t.job, t.attempt, t.rank, int(t.kind)): t for t in tasks.get(name, ())}
            known = self.statuses.setdefault(name, {})
            for key in known.keys() - wanted.keys():
                del known[key]
            for key, task in wanted.items():
                known[key] = self._work(name, key, task, known.get(key))
                held = self.blobs.setdefault(name, set())
                everywhere = self.kept.union(*(self.blobs.get(other, set()) for other in self.alive()))
                held |= {file.digest for file in (*task.copies, *task.resume.files) if file.digest in everywhere}
        self.seen()

    def go_on(self, times: int = 1) -> None:
        """The leader and all agents, by turns."""
        for _ in range(times):
            self.lead()
            self.agents()
            self.now_ns += SECOND

    def alive(self) -> list[str]:
        """Nodes whose agents speak."""
        return [name for name in sorted(self.nodes) if name not in self.dead]

    def die(self, name: str) -> None:
        """A node falls silent."""
        self.dead.add(name)
        self._set(name, membership_pb2.NODE_STATE_SUSPECT)

    def come_back(self, name: str) -> None:
        """A node is started anew: its workers are gone."""
        self.dead.discard(name)
        self.statuses.pop(name, None)
        self._set(name, membership_pb2.NODE_STATE_READY)

    def fail(self, name: str, *, may_retry: bool = True, message: str = "killed by signal 9", at: int = 0) -> None:
        """All workers that run on a node fail."""
        for status in self.statuses.get(name, {}).values():
            if status.state in (RUNNING, READY, PREPARING):
                status.state, status.message, status.may_retry = FAILED, message, may_retry
                status.failed_at.CopyFrom(timestamp(at or self.now_ns))
        self.seen()

    def job(self, job_id: str = "") -> training_pb2.Job:
        """A job's record; without a name, that of the only one."""
        return self.jobs[job_id or next(iter(self.jobs))]

    def loads(self) -> ByNode:
        """What the agents' heartbeats say."""
        found: dict[str, membership_pb2.Load] = {}
        for name in self.alive():
            tasks = [
                training_pb2.TaskProgress(
                    job=key[0],
                    attempt=key[1],
                    rank=key[2],
                    point=training_pb2.MetricPoint(step=self.steps[key], step_s=0.1, loss=1.0),
                    samples_per_s=50,
                )
                for key, status in self.statuses.get(name, {}).items()
                if status.state == RUNNING and key in self.steps
            ]
            found[name] = membership_pb2.Load(tasks=tasks)
        return found

    def _carry_out(self, state: State, found: Move, seen: Seen) -> None:
        before = self.jobs[found.job.id]
        if found.job.attempt.number != before.attempt.number:
            lost = [file.digest for file in unheld(state, found.job) if file.digest not in self.kept]
            again = advance(before, replace(seen, resume_lost=True)) if lost else found
            assert again is not None
            found = again
        if found.job.attempt.go and not before.attempt.go:
            known = statuses_of(state, before)
            assert all(known[worker.rank].state == READY for worker in before.attempt.workers)
        if found.lacked:
            self.lacked.add(found.job.id)
        self.write(found.job)

    def _work(
        self, name: str, key: Key, task: training_pb2.TrainingTask, was: training_pb2.TaskStatus | None
    ) -> training_pb2.TaskStatus:
        made = training_pb2.TaskStatus(job=task.job, attempt=task.attempt, rank=task.rank, kind=task.kind)
        if was is None:
            made.state = PREPARING
            return made
        made.CopyFrom(was)
        if was.state in (STOPPED, SUCCEEDED, FAILED):
            return made
        if task.kind == PLAN:
            made.state = SUCCEEDED
            made.plan.CopyFrom(self.plans.get(task.job) or plan_of(task.spec))
        elif task.kind == FINISH:
            made.state, made.version = SUCCEEDED, "{}"
        elif was.state == PREPARING:
            made.state, made.port = READY, 7000
        elif was.state == READY and task.go:
            made.state, made.pid = RUNNING, 4711
            self.steps[key] = task.resume.step
        elif was.state == RUNNING:
            self._train(name, key, task, made)
        return made

    def _train(self, name: str, key: Key, task: training_pb2.TrainingTask, made: training_pb2.TaskStatus) -> None:
        assert task.kind == TRAIN
        if task.stop:
            self._checkpoint(name, key, task, made)
            made.state, made.step = STOPPED, self.steps[key]
            return
        together = task.plan.strategy != training_pb2.STRATEGY_FEDERATED
        if together and any(worker.node in self.dead for worker in task.workers):
            return  # a step ends for all workers, or for none
        self.steps[key] = min(STEPS, self.steps[key] + EVERY // 2)
        if self.steps[key] % EVERY == 0:
            self._checkpoint(name, key, task, made)
        if self.steps[key] == STEPS:
            made.state, made.step = SUCCEEDED, STEPS
            made.results["samples_per_s"] = 80.0

    def _checkpoint(self, name: str, key: Key, task: training_pb2.TrainingTask, made: training_pb2.TaskStatus) -> None:
        step, federated = self.steps[key], task.plan.strategy == training_pb2.STRATEGY_FEDERATED
        if (federated and task.rank) or any(each.step == step for each in made.checkpoints):
            return
        digest = f"{task.job}/{task.attempt}/{task.rank}/{step}"
        self.blobs.setdefault(name, set()).add(digest)
        file = training_pb2.CheckpointFile(path=f"{task.rank}.bin", digest=digest, bytes=3)
        written = training_pb2.Checkpoint(step=step, files=[file], attempt=task.attempt)
        newest = [written, *made.checkpoints][:2]
        del made.checkpoints[:]
        made.checkpoints.extend(newest)

    def _reported(self, each: membership_pb2.Node) -> membership_pb2.Node:
        made = membership_pb2.Node()
        made.CopyFrom(each)
        made.report.tasks.extend(self.statuses.get(each.id, {}).values())
        made.report.blobs.extend(sorted(self.blobs.get(each.id, ())))
        return made

    def _set(self, name: str, state: membership_pb2.NodeState.ValueType) -> None:
        made = membership_pb2.Node()
        made.CopyFrom(self.nodes[name])
        made.state = state
        self.nodes = {**self.nodes, name: made}
        self.seen()

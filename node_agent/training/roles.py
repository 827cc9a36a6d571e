"""Which processes a task has. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from aimesh.training.v1 import training_pb2
from node_agent.training.launcher import Role

_AGGREGATOR = Role("aggregator", "training.federated.aggregator", host=True)
_WORKER = Role("worker", "training.worker")
_CLIENT = Role("client", "training.worker")
_PLANNER = Role("planner", "training.planner")
_FINISHER = Role("finisher", "inference.finish")


@dataclass(frozen=True)
class Cast:
    """The processes of one task."""

    main: Role
    """Whose end is the task's."""
    host: Role | None = None
    """The aggregator at which clients meet, on rank 0's node: the main one. Other workers meet at rank 0 itself."""
    client: Role | None = None
    """The one that trains beside an aggregator, in a folder of its own."""
    restarts: bool = False
    """Whether the main one is started again when it dies."""
    waits: bool = False
    """Whether the main one is started while the task is prepared, and waits for go."""

    @property
    def early(self) -> tuple[Role, ...]:
        """Those that are started while the task is prepared: importing torch takes seconds."""
        return tuple(dict.fromkeys(([self.host] if self.host else []) + ([self.main] if self.waits else [])))


def is_federated(task: training_pb2.TrainingTask) -> bool:
    """Whether its workers are clients of an aggregator."""
    strategy = task.plan.strategy if task.HasField("plan") else task.spec.strategy
    return strategy == training_pb2.STRATEGY_FEDERATED


def cast_of(task: training_pb2.TrainingTask) -> Cast:
    """The processes of a task."""
    if task.kind == training_pb2.TASK_KIND_PLAN:
        return Cast(_PLANNER)
    if task.kind == training_pb2.TASK_KIND_FINISH:
        return Cast(_FINISHER)
    if not is_federated(task):
        return Cast(_WORKER, waits=True)
    if task.rank == 0:
        return Cast(_AGGREGATOR, host=_AGGREGATOR, client=_CLIENT)
    return Cast(_CLIENT, restarts=True, waits=True)

"""What jobs that are reserved keep from inference, as replicas keep it from each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aimesh.training.v1 import training_pb2
from coordinator.training.needs import need_of
from coordinator.training.record import PLANNING, attempting


@dataclass
class Taken:
    """What is taken of one node."""

    memory: int = 0
    """Bytes."""
    gpus: dict[int, int] = field(default_factory=dict)
    """Bytes by NVML index; a GPU of a job is its own."""
    cores: float = 0.0

    def add(self, other: Taken) -> None:
        """Adds what is taken by another."""
        self.memory += other.memory
        self.cores += other.cores
        for index, size in other.gpus.items():
            self.gpus[index] = self.gpus.get(index, 0) + size


def taken_by(job: training_pb2.Job) -> dict[str, Taken]:
    """What a job's newest attempt takes of each node; nothing while it waits or is over."""
    need = need_of(job)
    if job.phase == PLANNING:
        return {job.attempt.workers[0].node: Taken(need.memory)}
    found: dict[str, Taken] = {}
    for worker in job.attempt.workers if attempting(job) else ():
        took = found.setdefault(worker.node, Taken())
        took.add(Taken(need.memory, dict.fromkeys(worker.gpus, need.gpu_memory), need.cores))
    return found


def reservations(jobs: Mapping[str, training_pb2.Job]) -> dict[str, Taken]:
    """What all jobs that are reserved take, by node."""
    found: dict[str, Taken] = {}
    for job in jobs.values():
        for node, took in taken_by(job).items() if job.spec.reserved else ():
            found.setdefault(node, Taken()).add(took)
    return found

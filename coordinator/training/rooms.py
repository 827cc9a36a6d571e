"""What replicas leave of each node for jobs, and what jobs leave for each other. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.placement import Placement
from coordinator.roster import Roster, Slot
from coordinator.state import State
from coordinator.training.needs import Need, gib, lacks_gpus, never
from coordinator.training.record import attempting, busy
from coordinator.training.reserved import Taken, taken_by


@dataclass
class Room:
    """What is left of a node when every replica that it is to run has its own."""

    node: membership_pb2.Node
    closed: str
    """Why it takes nothing new; empty when it does."""
    memory: int
    """Bytes; below 0 when too much was promised."""
    gpus: dict[int, int]
    """Bytes left on each GPU, by NVML index."""
    cores: float
    owned: dict[int, str] = field(default_factory=dict)
    """The job that has a GPU, by NVML index."""
    kept_for: str = ""
    """The job for which everything that becomes free here is kept; empty for none."""

    def lacks(self, job: training_pb2.Job, need: Need) -> str:
        """Why it cannot take another worker; empty when it can."""
        if self.closed:
            return self.closed
        if self.kept_for not in ("", job.id) and not _is_on(job, self.node.id):
            return f"is kept for {self.kept_for}, which has waited for long"
        if why := never(job, self.node):
            return why
        if need.memory > self.memory:
            return f"a worker needs {gib(need.memory)} of memory, {gib(max(0, self.memory))} are free"
        if need.cores > self.cores:
            return f"a worker needs {need.cores:g} cores, {max(0.0, self.cores):g} are free"
        return lacks_gpus(need, [left for index, left in self.gpus.items() if index not in self.owned], "free are")

    def take(self, job_id: str, need: Need) -> list[int]:
        """Gives a worker its place. The NVML indices of its GPUs, the freest."""
        free = sorted((-left, index) for index, left in self.gpus.items() if index not in self.owned)
        chosen = sorted(index for _, index in free[: need.gpus])
        self._change(job_id, Taken(need.memory, dict.fromkeys(chosen, need.gpu_memory), need.cores), 1)
        return chosen

    def occupy(self, job_id: str, took: Taken) -> None:
        """Takes what a job has."""
        self._change(job_id, took, 1)

    def free(self, job_id: str, took: Taken) -> None:
        """Gives back what a job had."""
        self._change(job_id, took, -1)

    def crowded(self) -> str:
        """Why not all that is promised here has room; empty when it has."""
        if self.memory < 0:
            return f"{gib(-self.memory)} of memory are missing"
        short = [index for index in self.owned if self.gpus.get(index, 0) < 0]
        return f"memory of GPU {short[0]} is missing" if short else ""

    def _change(self, job_id: str, took: Taken, sign: int) -> None:
        self.memory -= sign * took.memory
        self.cores -= sign * took.cores
        for index, size in took.gpus.items():
            self.gpus[index] = self.gpus.get(index, 0) - sign * size
            if sign > 0:
                self.owned[index] = job_id
            elif self.owned.get(index) == job_id:
                del self.owned[index]


class Rooms:
    """The rooms of all nodes that speak, by id, with the workers of every job that is busy in them."""

    def __init__(self, state: State, placement: Placement) -> None:
        self.state = state
        self.by_node = _rooms(state, placement)
        self._taken: dict[str, Mapping[str, Taken]] = {}
        for job in state.jobs.values():
            if busy(job):
                self.occupy(job)

    def occupy(self, job: training_pb2.Job) -> None:
        """Takes what a job's record says in place of what it had before."""
        self.release(job.id)
        self._taken[job.id] = taken_by(job)
        for node, took in self._taken[job.id].items():
            if node in self.by_node:
                self.by_node[node].occupy(job.id, took)

    def keep(self, job_id: str, nodes: Iterable[str]) -> None:
        """Keeps nodes for a job: no other is given more of them than it has."""
        for node in nodes:
            self.by_node[node].kept_for = job_id

    def without_jobs(self) -> dict[str, Room]:
        """The rooms as they would be if no job had anything: copies."""
        found = {
            node: replace(room, gpus=dict(room.gpus), owned=dict(room.owned)) for node, room in self.by_node.items()
        }
        for job_id, taken in self._taken.items():
            for node, took in taken.items():
                if node in found:
                    found[node].free(job_id, took)
        return found

    def release(self, job_id: str) -> None:
        """Gives back what a job has."""
        for node, took in self._taken.pop(job_id, {}).items():
            if node in self.by_node:
                self.by_node[node].free(job_id, took)


def _is_on(job: training_pb2.Job, node: str) -> bool:
    return attempting(job) and any(worker.node == node for worker in job.attempt.workers)


def _rooms(state: State, placement: Placement) -> dict[str, Room]:
    roster, found = Roster(state), {}
    for node_id, slot in roster.slots.items():
        node = state.nodes.get(node_id)
        if node is None:
            continue
        for key in sorted(placement.assignments.get(node_id, ())):
            if key in state.versions:
                roster.take(slot, key)
        found[node_id] = Room(node, _closed(slot), *_left(slot), node.capacity.cpu_cores)
    return found


def _left(slot: Slot) -> tuple[int, dict[int, int]]:
    """Memory, and memory by GPU, that replicas leave: what reserved jobs keep from them is the jobs' own to count."""
    gpus = {gpu.index: left for gpu, left in zip(slot.node.capacity.gpus, slot.gpus_left, strict=True)}
    kept = slot.reserved
    return slot.memory_left + kept.memory, {index: left + kept.gpus.get(index, 0) for index, left in gpus.items()}


def _closed(slot: Slot) -> str:
    return slot.closed[1] if slot.closed is not None else ""

"""What a worker of a job needs, and why a node can never take one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.training.record import is_federated

GIB = 1024**3
LEAST_MEMORY = GIB
"""Memory of a worker, and of a planning process, of which nobody has said what it needs."""
RUNTIME = "training"
"""In a node's runtimes when its agent takes workers: the version of torch that these have."""


@dataclass(frozen=True)
class Need:
    """What each worker takes of its node."""

    memory: int
    """Bytes."""
    gpus: int
    gpu_memory: int
    """Bytes on each GPU."""
    cores: float
    """0 for whatever is free."""


def need_of(job: training_pb2.Job) -> Need:
    """As the user said, else as it was planned."""
    asked, plan = job.spec.resources, job.plan
    return Need(
        asked.memory_bytes or plan.memory_bytes or LEAST_MEMORY,
        asked.gpus,
        (asked.gpu_memory_bytes or plan.gpu_memory_bytes) if asked.gpus else 0,
        asked.cpu_cores,
    )


def most_workers(job: training_pb2.Job) -> int:
    """Most workers that it is given."""
    most = max(1, job.spec.resources.max_workers)
    return max(1, min(most, job.plan.workers or most))


def least_workers(job: training_pb2.Job) -> int:
    """Fewest workers with which it starts: a plan may say that it is better off with fewer than were asked for."""
    least = min(max(1, job.spec.resources.min_workers, job.plan.from_workers), most_workers(job))
    return min((count for count in job.plan.counts if count >= least), default=least)


def fitting(job: training_pb2.Job, count: int) -> int:
    """How many of so many workers its strategy can use."""
    if not job.plan.counts:
        return count
    return max((each for each in job.plan.counts if each <= count), default=0)


def shares_nodes(job: training_pb2.Job) -> bool:
    """Whether several workers may be on one node: where each has GPUs of its own."""
    return job.spec.resources.gpus > 0 and not is_federated(job)


def never(job: training_pb2.Job, node: membership_pb2.Node) -> str:
    """Why a node, empty, could not take a worker; empty when it could."""
    need, capacity = need_of(job), node.capacity
    if node.id in job.unfit:
        return job.unfit[node.id]
    if node.runtimes and RUNTIME not in node.runtimes:
        return "takes no workers, or has no torch for them"
    for label, value in sorted(job.spec.resources.node_labels.items()):
        if node.labels.get(label) != value:
            return f"label {label} is {node.labels.get(label, '')!r}, not {value!r}"
    if need.memory > capacity.memory_bytes:
        return f"a worker needs {gib(need.memory)} of memory, it has {gib(capacity.memory_bytes)}"
    if need.cores > capacity.cpu_cores:
        return f"a worker needs {need.cores:g} cores, it has {capacity.cpu_cores:g}"
    return lacks_gpus(need, [gpu.memory_bytes for gpu in capacity.gpus], "it has")


def lacks_gpus(need: Need, gpus: Iterable[int], has: str) -> str:
    """Why these GPUs, by their bytes, are not enough for a worker; empty when they are."""
    known = sorted(gpus, reverse=True)
    if need.gpus > len(known):
        return f"a worker needs {need.gpus} GPUs, {has} {len(known)}"
    if need.gpus and need.gpu_memory > known[need.gpus - 1]:
        return f"a worker needs {need.gpus} GPUs with {gib(need.gpu_memory)}, {has} {', '.join(map(gib, known))}"
    return ""


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB"

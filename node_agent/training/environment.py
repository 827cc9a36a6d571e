"""How a process of a task is started: its command line and its environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from meshkit.tls import TlsSettings

_KEPT = frozenset({"HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER", "AIMESH_FAILPOINTS"})
_KEPT_KINDS = ("LC_", "LD_", "PYTHON", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "MKL_", "TORCH", "XDG_")


@dataclass(frozen=True)
class Site:
    """What a process is told of its node."""

    node_id: str
    address: str
    """Where the processes of other nodes reach this one's."""
    cores: float
    """Cores of the node."""
    interface: str = ""
    """Network interface of the workers' traffic; theirs to find when empty."""
    gpus: Mapping[int, str] = field(default_factory=dict)
    """UUID of each GPU by its NVML index."""
    tls: TlsSettings = field(default_factory=TlsSettings)


def argv(python: str, module: str, folder: Path) -> list[str]:
    """`-P`: the working folder is no import path, where a job's file could stand in for a module of ours."""
    return [python, "-P", "-m", module, str(folder)]


def environment(
    task: training_pb2.TrainingTask, site: Site, base: Mapping[str, str], *, host: bool = False
) -> dict[str, str]:
    """Of one process. `host` is for the one at which the workers meet: it chooses the port.

    Of the agent's own only what programs need anywhere: it may hold secrets. Raises InvalidInputError when the
    rendezvous is no host:port, or a GPU is not the node's.
    """
    kept = {key: value for key, value in base.items() if key in _KEPT or key.startswith(_KEPT_KINDS)}
    address, port = (site.address, "0") if host else _split(task)
    found = {
        **kept,
        "PYTHONUNBUFFERED": "1",
        "RANK": str(task.rank),
        "WORLD_SIZE": str(max(1, len(task.workers))),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(_gpus(task, site)),
        "OMP_NUM_THREADS": str(threads(task, site)),
        "AIMESH_NODE": site.node_id,
    }
    if site.interface:
        found |= {"GLOO_SOCKET_IFNAME": site.interface, "NCCL_SOCKET_IFNAME": site.interface}
    files = {"CA": site.tls.ca, "CERT": site.tls.cert, "KEY": site.tls.key}
    return found | {f"AIMESH_TLS_{name}": str(path) for name, path in files.items() if path is not None}


def threads(task: training_pb2.TrainingTask, site: Site) -> int:
    """Cores that one worker computes with: those asked for, else its share of the node's, at least 1."""
    own = sum(worker.node == site.node_id for worker in task.workers)
    share = site.cores / max(1, own)
    return max(1, int(min(task.spec.resources.cpu_cores or share, site.cores)))


def worker_of(task: training_pb2.TrainingTask) -> training_pb2.Worker:
    """The task's own entry among the workers; an empty one when it is not there."""
    found = [worker for worker in task.workers if worker.rank == task.rank]
    return found[0] if found else training_pb2.Worker()


def _split(task: training_pb2.TrainingTask) -> tuple[str, str]:
    """The rendezvous' host and port; none before go, and none at all where nobody is to be met."""
    if not task.rendezvous:
        return "", ""
    host, _, port = task.rendezvous.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInputError(f"job {task.job}: the rendezvous {task.rendezvous!r} is no host:port")
    return host.strip("[]"), port


def _gpus(task: training_pb2.TrainingTask, site: Site) -> Sequence[str]:
    """No GPU at all where the task has none: one that it takes unasked is another's."""
    if task.kind != training_pb2.TASK_KIND_TRAIN:
        return ()
    wanted = worker_of(task).gpus
    for index in wanted:
        if index not in site.gpus:
            raise InvalidInputError(f"job {task.job}: node {site.node_id} has no GPU {index}")
    return [site.gpus[index] for index in wanted]

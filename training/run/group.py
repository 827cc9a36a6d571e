"""The workers of an attempt as one of them sees them: torch's process group, and the few sums that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d as c10d

from meshkit.errors import UnavailableError
from meshkit.interfaces import interface_of
from training.run.link import Link, measure_link

TIMEOUT = timedelta(seconds=30)
"""How long one collective may wait for the slowest worker. A connection that breaks is seen at once."""
SAID = 2
"""Numbers that each worker tells the others in a step: whether it is to stop, whether a checkpoint is due."""
JOIN_TIMEOUT = timedelta(seconds=120)
"""How long the workers may take to meet: imports and data differ more between machines than steps do."""


@dataclass(frozen=True)
class Group:
    """A worker's place among the others. Of one worker there is no process group, and sums are what they were."""

    rank: int
    world_size: int
    device: torch.device
    link: Link | None = None
    """To the others, as it was timed when they met."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all workers; every one of them calls it at the same point. Raises RuntimeError."""
        return self.start_sum(values).wait()

    def start_sum(self, values: Sequence[float]) -> Sum:
        """The same, but other work may be done until `wait` is called.

        Always over gloo: it sees a broken connection at once, where NCCL waits for its timeout.
        """
        both = torch.tensor(values, dtype=torch.float64)
        work = distributed.all_reduce(both, async_op=True) if self.world_size > 1 else None
        return Sum(tuple(values), both, work)

    def close(self) -> None:
        """Leaves the others. Called when all is done; after an error the process just ends."""
        if self.world_size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


@dataclass(frozen=True)
class Sum:
    """Sums on their way, of values that each worker gave."""

    own: tuple[float, ...]
    """What this worker gave."""
    both: torch.Tensor
    work: distributed.Work | None
    """None when they are there."""

    def wait(self) -> list[float]:
        """The sums. Raises RuntimeError when a worker was lost."""
        if self.work is not None:
            self.work.wait()
        return [float(value) for value in self.both.tolist()]


def device_of() -> torch.device:
    """The first GPU that this process may see, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def join(rank: int, world_size: int, rendezvous: str, address: str = "") -> Group:
    """Meets the other workers at the store of rank 0's agent: gloo on the CPU, NCCL for tensors on GPUs.

    `address` is this node's own, at which the others reach it. What lies between them is timed. Raises UnavailableError
    when they do not come.
    """
    device = device_of()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        return Group(rank, world_size, device)
    interface = interface_of(address)
    if interface:
        # Left to themselves both look the host's name up, which on many machines is a loopback address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    try:
        store = _store(rendezvous, world_size)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=JOIN_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        group = Group(rank, world_size, device)
        group.sum([1.0])  # all have come: from here on the short timeout holds
        c10d._set_pg_timeout(TIMEOUT, distributed.group.WORLD)
        link = measure_link(c10d._get_default_group(), world_size, device)
    except (RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"the workers did not meet at {rendezvous!r} within {JOIN_TIMEOUT.seconds} s: {error}",
            hint="a peer ended or cannot be reached; its log says more",
            reason="PEER_LOST",
        ) from error
    return replace(group, link=link)


def _store(rendezvous: str, world_size: int) -> Any:
    """The store at host:port. Raises RuntimeError, or ValueError for an address that is none."""
    host, _, port = rendezvous.rpartition(":")
    store: Any = distributed.TCPStore(  # type: ignore[attr-defined]
        host.strip("[]"), int(port), world_size, is_master=False, timeout=JOIN_TIMEOUT
    )
    return store

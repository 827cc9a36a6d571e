"""What lies between the workers of an attempt: a few all-reduces are timed once they have met, before the first step.

The cost model (training/strategy/cost.py) takes 2 (p - 1) (latency / 2 + n / p / bandwidth) seconds for a ring of p
workers and n bytes. Two sizes give both numbers, so what is said here is what the model goes by, whatever it hides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from aimesh.training.v1 import training_pb2

BUDGET_S = 0.06
"""Nothing but the first message is sent that is likely to end later."""
TINY = 64
SIZES = (*[16 << 10] * 3, *[128 << 10] * 2, *[1 << 20] * 3)
"""Bytes, one after the other as long as there is time: a slow link never comes to the last."""
_ITEM = 4


@dataclass(frozen=True)
class Link:
    """Between one worker and the next."""

    bandwidth: float
    """Bytes a second."""
    latency_s: float
    """Of a round trip; a message without content takes half."""

    def message(self, workers: int) -> training_pb2.Link:
        """As it is told."""
        return training_pb2.Link(bandwidth=self.bandwidth, latency_s=self.latency_s, workers=workers)


@dataclass(frozen=True)
class Timed:
    """One all-reduce."""

    count: int
    """Bytes."""
    seconds: float


def measure_link(
    group: distributed.ProcessGroup, world_size: int, device: torch.device, budget_s: float = BUDGET_S
) -> Link:
    """Times all-reduces among the workers of a group, two or more, each of which calls it at the same point.

    Before each message a tiny one tells whether all have time for it: its sum is the same everywhere, so none waits for
    one that has stopped; and its own time is the link's latency. Raises RuntimeError when a worker was lost.
    """
    _all_reduce(group, TINY, device, goes_on=True)  # the first opens connections, and waits for whoever comes last
    began, timed = time.perf_counter(), list[Timed]()
    for number, count in enumerate(SIZES):
        fits = time.perf_counter() - began + likely_s(timed, count) < budget_s
        seconds, agreed = _all_reduce(group, TINY, device, goes_on=fits or not number)
        timed.append(Timed(TINY, seconds))
        if not agreed:
            break
        seconds, _ = _all_reduce(group, count, device, goes_on=True)
        timed.append(Timed(count, seconds))
    return link_of(timed, world_size)


def likely_s(timed: Sequence[Timed], count: int) -> float:
    """How long a message of so many bytes may take, going by the shortest of the largest that were timed."""
    if len(timed) < 2:
        return 0.0
    most = max(one.count for one in timed)
    tiny_s, last_s = _shortest(timed, TINY), _shortest(timed, most)
    return tiny_s + max(0.0, last_s - tiny_s) * count / most


def link_of(timed: Sequence[Timed], world_size: int) -> Link:
    """The link by which a ring would take as long. The shortest of each size counts: other work only slows it.

    With one size only, or a larger one that took no longer, all of the time goes to both: a bound from the slow side.
    """
    least, most = min(one.count for one in timed), max(one.count for one in timed)
    small_s, large_s = _shortest(timed, least), _shortest(timed, most)
    messages = 2 * (world_size - 1)
    latency_s, moved = 2 * small_s / messages, messages * most / world_size
    apart = large_s - small_s
    if most == least or apart <= 0:
        return Link(moved / max(large_s, 1e-9), latency_s)
    return Link(moved * (1 - least / most) / apart, latency_s)


def _shortest(timed: Sequence[Timed], count: int) -> float:
    return min(one.seconds for one in timed if one.count == count)


def _all_reduce(
    group: distributed.ProcessGroup, count: int, device: torch.device, *, goes_on: bool
) -> tuple[float, bool]:
    """Seconds of one of so many bytes, and whether every worker goes on."""
    values = torch.zeros(count // _ITEM, dtype=torch.float32, device=device)
    values[0] = 0.0 if goes_on else 1.0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    group.allreduce([values]).wait()
    stopping = float(values[0])  # waits for a GPU too
    return time.perf_counter() - began, stopping == 0.0

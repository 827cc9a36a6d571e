"""Which of the node's GPUs a model runs on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuShare:
    """Memory of one GPU, by its index on the node."""

    index: int
    memory_bytes: int


def choose_gpu(gpus: Mapping[int, int], promised: Iterable[GpuShare], needed_bytes: int) -> GpuShare | None:
    """The GPU with the most memory that is not promised yet, the lowest index of equals; None when there is no GPU.

    `gpus` is memory in bytes by index. Whether a model fits on the node at all is the coordinator's to decide.
    """
    left = dict(gpus)
    for share in promised:
        if share.index in left:
            left[share.index] -= share.memory_bytes
    if not left:
        return None
    return GpuShare(max(left, key=lambda index: (left[index], -index)), needed_bytes)

"""Random numbers of workers that hold parts of one model: the loop has seeded them all alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def draw_apart(rank: int) -> None:
    """From here on each worker draws its own. Every one of them has drawn the same before."""
    torch.manual_seed(_common() + rank)


def keep_apart(module: nn.Module, rank: int) -> None:
    """Has a module that is at work on a worker's own features (dropout between two parts of layers) draw its own, and
    everything after it what all draw: the same mask for each worker's features would not be dropout of all of them.
    """
    cuda: Any = torch.cuda
    kept: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def enter(_module: nn.Module, _inputs: object) -> None:
        common = _common()
        on_gpu = torch.cuda.get_rng_state() if cuda.is_initialized() else None
        kept.append((torch.get_rng_state(), on_gpu))
        torch.manual_seed(common + rank)

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        state, on_gpu = kept.pop()
        torch.set_rng_state(state)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _common() -> int:
    return int(torch.randint(1 << 62, ()))

"""Tiny torch programs, saved as torch saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

WEIGHT = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


class Linear(torch.nn.Module):
    """y = x @ WEIGHT.T, and how many rows there are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(WEIGHT))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """[batch, 3] -> [batch, 2] and [1]."""
        return {"y": torch.nn.functional.linear(x, self.weight), "rows": torch.ones_like(x[:, 0]).sum()[None].long()}


def write_exported(path: Path) -> Path:
    """A torch.export archive with a batch of 1 to 64."""
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Linear().eval(), (torch.zeros(2, 3),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, path)
    return path


def write_script(path: Path) -> Path:
    """TorchScript of a plain linear layer with WEIGHT and no bias."""
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight = torch.nn.Parameter(torch.tensor(WEIGHT))
    trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace  # typed here, as torch does not
    torch.jit.save(trace(layer, torch.zeros(1, 3)), path)
    return path

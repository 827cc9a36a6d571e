"""The result as a program that can be served: torch.export, named inputs and outputs, any number of samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from meshkit.errors import InvalidInputError
from training.run.disk import whole_file
from training.trainer import Entry

FILE = "model.pt2"
_TOLERANCE = 1e-4
"""Relative and absolute difference between the model's and the program's outputs, in FP32."""


def export(entry: Entry, model: nn.Module, batch: Any, folder: Path) -> Path:
    """Writes what the trainer serves of a model on the CPU, with a batch of two samples or more as the example.

    The first dimension of every tensor is the number of samples, and stays open. The program is read back and must give
    what the model gives. Raises InvalidInputError (EXPORT_FAILED) that says what to change,
    OSError when the disk is full.
    """
    served = entry.served(model.cpu().eval()).eval()
    example = entry.example(batch)
    try:
        with torch.inference_mode(False), torch.no_grad():
            expected = served(*example)
            program = torch.export.export(served, example, dynamic_shapes=_open(served, example), strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise _failed(entry, f"{type(error).__name__}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with whole_file(path) as file:
        torch.export.save(_without_examples(program), file)
    _check(entry, path, example, expected)
    return path


def _open(served: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Shapes whose first dimension is one size, named and open, by argument of forward."""
    samples = torch.export.Dim("batch", min=1)
    names = list(inspect.signature(served.forward).parameters)[: len(example)]
    return {name: {0: samples} if one.ndim else None for name, one in zip(names, example, strict=True)}


def _without_examples(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without the samples that it was traced with: data stays where it is."""
    program._example_inputs = None
    return program


def _check(entry: Entry, path: Path, example: tuple[torch.Tensor, ...], expected: Any) -> None:
    """Loads the program and compares on the example and on one sample alone. Raises InvalidInputError."""
    module = torch.export.load(path).module()
    whole = pytree.tree_leaves(module(*example))
    alone = pytree.tree_leaves(module(*(one[:1] for one in example)))
    for wanted, got, first in zip(pytree.tree_leaves(expected), whole, alone, strict=True):
        if not isinstance(wanted, torch.Tensor):
            raise _failed(entry, f"forward gives {type(wanted).__name__}, not tensors")
        if not _close([(wanted, got), (wanted[:1], first)]):
            raise _failed(entry, "the exported program gives other values than the model")


def _close(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return all(torch.allclose(a, b, _TOLERANCE, _TOLERANCE, equal_nan=True) for a, b in pairs)


def _failed(entry: Entry, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"trainer {entry.name}: the trained model cannot be exported: {why[:600]}",
        hint="write served(model): a module of tensors to tensors, for any number of samples, without own control flow",
        reason="EXPORT_FAILED",
    )

"""Checkpoints as the loop opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.checkpoint.api import Saver
from training.checkpoint.loader import load_into
from training.checkpoint.writer import DcpSaver
from training.run.group import Group


def open_saver(checkpoints: Path, group: Group) -> Saver:
    """The saver of a worker."""
    return DcpSaver(checkpoints, group)


def load(folder: Path, state: dict[str, Any]) -> None:
    """Fills `state` from the files of a whole checkpoint, whatever world size and strategy wrote it.

    Tensors in place, other values replaced. Raises InvalidInputError when it is of another model, naming the key, and
    DataLossError when a file is damaged or missing, naming it.
    """
    load_into(folder, state)

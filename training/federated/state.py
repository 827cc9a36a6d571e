"""What a round leaves behind, and the checkpoint that holds it: two files, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meshkit.errors import DataLossError, InvalidInputError
from meshkit.files import sync, sync_directory
from training.federated.settings import Settings
from training.federated.updates import Lengths
from training.federated.wire import CONTROL, Array, Slot, Tensors, layout_of

TENSORS = "model.safetensors"
FACTS = "round.json"


@dataclass(frozen=True)
class Global:
    """The model after a round, with all that the next one goes by."""

    round: int
    """Rounds made."""
    model: Tensors
    """What travels of the model."""
    control: Tensors = field(default_factory=dict)
    """SCAFFOLD's control variate, by the names of the parameters that are trained."""
    median: Lengths = field(default_factory=Lengths)
    """Of the updates of the last round; zeros before the first."""
    counted: Mapping[int, int] = field(default_factory=dict)
    """The last round of which a client's update is part of the model."""
    samples: Mapping[int, int] = field(default_factory=dict)
    """Of each client whose updates have been part of the model, as its last one said."""
    releases: int = 0
    """Noisy models that were given to clients: what epsilon is counted from."""
    loss: float = 0.0
    """Of the last round."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Measured in the last round, by name."""


def fresh(model: Tensors, trained: Sequence[str], settings: Settings) -> Global:
    """The state before the first round; `trained` are the names of the parameters."""
    control = {name: np.zeros_like(model[name]) for name in trained} if settings.scaffold else {}
    return Global(round=0, model=model, control=control)


def write(folder: Path, state: Global) -> dict[str, int]:
    """Writes a state as folder/<round>, on the disk when it returns. Gives the files' bytes by name.

    Raises OSError, for a full disk too: then nothing of it is left.
    """
    place, making = folder / str(state.round), folder / f".{state.round}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        _fill(making, state)
        shutil.rmtree(place, ignore_errors=True)  # of an aggregator that died before it said so
        making.rename(place)
    except OSError:
        shutil.rmtree(making, ignore_errors=True)
        raise
    sync_directory(folder)
    return {name: (place / name).stat().st_size for name in (TENSORS, FACTS)}


def _fill(making: Path, state: Global) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {**state.model, **{CONTROL + name: array for name, array in state.control.items()}}
    try:
        save_file({name: array.copy() for name, array in tensors.items()}, making / TENSORS)
    except SafetensorError as error:
        if of_disk := re.search(r"os error (\d+)", str(error)):
            number = int(of_disk[1])
            raise OSError(number, os.strerror(number), str(making / TENSORS)) from None
        raise
    (making / FACTS).write_text(json.dumps(_facts(state)))
    for name in (TENSORS, FACTS):
        with (making / name).open("rb") as file:
            sync(file.fileno())
    sync_directory(making)


def read(folder: Path, begun: Global) -> Global:
    """The state in a checkpoint's folder, for the model of the one that the job begins with.

    Raises DataLossError when a file is missing or damaged, InvalidInputError (BAD_CHECKPOINT) when it is of another
    model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / TENSORS)
        facts = json.loads((folder / FACTS).read_text())
        state = Global(
            round=int(facts["round"]),
            model=_those(tensors, begun.model, "", folder),
            control=_those(tensors, begun.control, CONTROL, folder),
            median=Lengths(**facts["median"]),
            counted={int(client): int(number) for client, number in facts["counted"].items()},
            samples={int(client): int(count) for client, count in facts.get("samples", {}).items()},
            releases=int(facts["releases"]),
            loss=float(facts["loss"]),
            values=dict(facts["values"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLossError(f"checkpoint {folder}: {error}", hint="it is fetched again at the next start") from error
    return state


def _facts(state: Global) -> dict[str, Any]:
    return {
        "round": state.round,
        "median": {"model": state.median.model, "control": state.median.control},
        "counted": {str(client): number for client, number in state.counted.items()},
        "samples": {str(client): count for client, count in state.samples.items()},
        "releases": state.releases,
        "loss": state.loss,
        "values": dict(state.values),
    }


def _those(tensors: Mapping[str, Array], wanted: Tensors, prefix: str, folder: Path) -> dict[str, Array]:
    """The tensors of some names. Raises InvalidInputError naming the first that is missing or another."""
    found = {}
    for slot in layout_of(wanted):
        array = tensors.get(prefix + slot.name)
        if array is None or (array.shape, array.dtype) != (slot.shape, slot.dtype):
            has = "missing" if array is None else str(Slot(slot.name, str(array.dtype), array.shape))
            raise InvalidInputError(
                f"checkpoint {folder} is of another model: {prefix}{slot} is {has}",
                hint="the job's code or hyperparameters differ from those that wrote it",
                reason="BAD_CHECKPOINT",
            )
        found[slot.name] = array
    return found

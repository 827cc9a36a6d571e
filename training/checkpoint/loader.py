"""Fills a state from a whole checkpoint, whatever number of workers and strategy wrote it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from meshkit.errors import DataLossError, InvalidInputError
from training.checkpoint.fit import Shape, absent_states, misfit
from training.checkpoint.reading import Planner, Reader, read_metadata
from training.checkpoint.sums import verify


def load_into(folder: Path, state: dict[str, Any]) -> None:
    """See training.checkpoint.access.load. Each worker reads what it needs; none waits for another."""
    verify(folder)
    wanted = {name: value for name, value in state.items() if name != "shapes"}
    try:
        has = _shapes(read_metadata(folder))
        why = misfit(has, _flat_shapes(wanted), _model_of(state))
        if why:
            raise _foreign(folder, why)
        absent = absent_states(has, _flat_shapes(wanted))
        _zero(wanted, absent)
        _load(folder, _without(wanted, absent))
    except (pickle.UnpicklingError, EOFError) as error:
        raise DataLossError(f"{folder / '.metadata'} cannot be read: {error}", hint=_HINT) from error
    except CheckpointException as error:
        raise _unreadable(folder, error) from error
    except OSError as error:
        raise DataLossError(f"checkpoint {folder}: {error}", hint=_HINT) from error
    state.update(wanted)


_HINT = "its parts are fetched again at the next start"


def _load(folder: Path, wanted: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        state_dict_loader.load(wanted, storage_reader=Reader(folder), planner=Planner(), no_dist=True)


def _shapes(metadata: Metadata) -> dict[str, Shape]:
    return {
        name: tuple(one.size) if isinstance(one, TensorStorageMetadata) else None
        for name, one in metadata.state_dict_metadata.items()
    }


def _flat_shapes(state: Mapping[str, Any]) -> dict[str, Shape]:
    flat, _ = flatten_state_dict(dict(state))
    return {name: tuple(one.shape) if isinstance(one, torch.Tensor) else None for name, one in flat.items()}


def _model_of(state: Mapping[str, Any]) -> dict[str, Shape]:
    """The whole model's tensors by name, of which the state may have some only."""
    if "shapes" in state:
        return {f"model.{name}": tuple(shape) for name, shape in state["shapes"].items()}
    return _flat_shapes({"model": state["model"]})


def _zero(state: Mapping[str, Any], absent: set[str]) -> None:
    """An optimizer's state that was never begun is zeros."""
    for name in absent:
        for value in state["optimizer"]["state"][name].values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def _without(state: dict[str, Any], absent: set[str]) -> dict[str, Any]:
    """The same dictionaries, but those of some parameters."""
    if not absent:
        return state
    optimizer = state["optimizer"]
    kept = {name: value for name, value in optimizer["state"].items() if name not in absent}
    return {**state, "optimizer": {**optimizer, "state": kept}}


def _unreadable(folder: Path, error: CheckpointException) -> DataLossError | InvalidInputError:
    ((cause, _),) = list(error.failures.values())[:1]
    if isinstance(cause, pickle.UnpicklingError | OSError | EOFError):
        return DataLossError(f"checkpoint {folder} cannot be read: {cause}"[:600], hint=_HINT)
    return _foreign(folder, str(cause))


def _foreign(folder: Path, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"checkpoint {folder} does not fit this job: {why}"[:600],
        hint="the job's code or hyperparameters differ from those that wrote it: submit it anew",
        reason="BAD_CHECKPOINT",
    )

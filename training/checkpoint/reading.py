"""Reads a checkpoint's own description and values without running code from it: pickles of plain data only."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

METADATA = ".metadata"
_DESCRIPTION = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_PLAIN = {("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path")}


class _Unpickler(pickle.Unpickler):
    """Knows the classes of a checkpoint's description, and nothing that does anything."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _PLAIN or (module in _DESCRIPTION and "." not in name)
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")


class Reader(FileSystemReader):
    """Reads files of a folder, the description with care."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description. Raises UnpicklingError, OSError."""
        return read_metadata(Path(self.path), self.load_id)


class Planner(DefaultLoadPlanner):
    """Takes plain values only for what is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts a value into the state. Raises UnpicklingError."""
        plain = io.BytesIO()
        torch.save(plain_value(value), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def read_metadata(folder: Path, load_id: str | None = None) -> Metadata:
    """The description of a checkpoint. Raises UnpicklingError, OSError."""
    with (folder / METADATA).open("rb") as file:
        found = _Unpickler(file).load()
    if not isinstance(found, Metadata):
        raise pickle.UnpicklingError(f"it is a {type(found).__name__}, not a checkpoint's description")
    if found.storage_meta is None:
        found.storage_meta = StorageMeta()
    found.storage_meta.load_id = load_id
    return found


def plain_value(value: io.BytesIO) -> Any:
    """A value that was written. Raises UnpicklingError when it is of a class that could do anything."""
    return torch.load(value, map_location="cpu", weights_only=True)

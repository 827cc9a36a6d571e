"""Reads the outline of an HDF5 file, as a program of its own: `h5_probe.py PATH OFFSET SIZE` prints JSON.

The HDF5 library is C that has crashed on hostile files more than once (its list of CVEs), so it runs in a process that
may be lost, with little memory and time. Imports nothing of aimesh.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 20
MOST_DATASETS = 100_000
MOST_TEXT = 16 << 20
ATTRIBUTES = ("model_config", "keras_version", "backend")


class Part(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115 (the process ends with it)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves there."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Reads, never past the part's end."""
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def outline(path: str, offset: int, size: int) -> dict[str, Any]:
    """The known attributes of the root, and each dataset's name, NumPy type and shape."""
    import h5py

    with h5py.File(io.BufferedReader(Part(path, offset, size)), "r") as file:
        attributes = {name: _text(file.attrs[name]) for name in ATTRIBUTES if name in file.attrs}
        return {"attributes": attributes, "datasets": _datasets(file, h5py)}


def _datasets(file: Any, h5py: Any) -> list[list[Any]]:
    found: list[list[Any]] = []
    seen: set[Any] = set()
    todo = [("", file)]
    while todo:
        path, group = todo.pop()
        for name in group:
            # Links to other files are not followed.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                continue
            seen.add(place)
            if isinstance(item, h5py.Dataset):
                found.append([f"{path}/{name}", item.dtype.str, list(item.shape or ())])
            elif isinstance(item, h5py.Group):
                todo.append((f"{path}/{name}", item))
            if len(seen) > MOST_DATASETS:
                raise ValueError(f"more than {MOST_DATASETS} groups and datasets")
    return sorted(found)


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:MOST_TEXT]


def main() -> None:
    """Limits itself, then reads."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, offset, size = sys.argv[1:]
    json.dump(outline(path, int(offset), int(size)), sys.stdout)


if __name__ == "__main__":
    main()

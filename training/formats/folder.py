"""What files a path is made of, and what a directory of Hugging Face's kind says in its JSON files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from meshkit.errors import InvalidInputError
from training.formats.bounded import open_window, parse_json, printable

CONFIG = "config.json"
_INDEXES = (".safetensors.index.json", ".bin.index.json")
_MOST_FILES = 10_000
_MOST_JSON = 32 << 20


def files_of(folder: Path) -> list[Path]:
    """Regular files below a directory, sorted, without hidden ones. Raises InvalidInputError for too many."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):  # does not follow links to directories
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        found += [Path(root, name) for name in names if not name.startswith(".")]
        if len(found) > _MOST_FILES:
            raise InvalidInputError(
                f"{folder} holds more than {_MOST_FILES} files", hint="name the model's own directory or file"
            )
    return sorted(path for path in found if path.is_file())


@dataclass(frozen=True)
class Told:
    """What the JSON files of a directory say of the model in it."""

    architecture: str = ""
    warnings: tuple[str, ...] = ()


def told_by(files: list[Path]) -> Told:
    """The architecture of config.json, and shards that an index names but that are not there."""
    architecture, warnings = "", []
    for path in sorted(files, key=lambda one: len(one.parts)):
        if path.name == CONFIG and not architecture:
            config = _json(path)
            named = config.get("architectures") if isinstance(config, dict) else None
            if isinstance(named, list) and named and isinstance(named[0], str):
                architecture = named[0]
        elif path.name.endswith(_INDEXES):
            warnings += _missing(path)
    return Told(architecture, tuple(warnings))


def _missing(index: Path) -> list[str]:
    content = _json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        return [f"{index.name} is no index of shards"]
    names = sorted({name for name in places.values() if isinstance(name, str)})
    return [
        f"shard {printable(name)!r} is missing, which {index.name} names"
        for name in names
        if name != PurePosixPath(name).name or not (index.parent / name).is_file()
    ]


def _json(path: Path) -> Any:
    with open_window(path) as window:
        if window.size > _MOST_JSON:
            return None
        try:
            return parse_json(window.read(0, window.size), path.name)
        except InvalidInputError:
            return None

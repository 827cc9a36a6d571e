"""The data of a job as samples: built in, uploaded, or a path on the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aimesh.training.v1 import training_pb2
from training.data.builtin import builtin
from training.data.readers import READERS, bad, read
from training.data.samples import ArraySamples, Piece


def load(data: training_pb2.Data, uploaded: Path) -> ArraySamples | None:
    """What a job's data says, with uploaded shards in a folder; None when it names none: the trainer brings its own.

    Raises InvalidInputError (BAD_DATA) that names the file or path.
    """
    if data.builtin:
        return ArraySamples((builtin(data.builtin),))
    if data.shards:
        return joined([uploaded / shard.name for shard in data.shards])
    if data.path:
        return joined(files_of(Path(data.path)))
    return None


def files_of(path: Path) -> list[Path]:
    """A file, or the data files in a folder and its folders by name. Raises InvalidInputError when there are none."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise bad(f"{path} does not exist on this node", "data.path must lie on every node that works for the job")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
    if not found:
        raise bad(f"{path} holds no data files", f"known forms: {', '.join(READERS)}")
    return found


def joined(paths: Sequence[Path]) -> ArraySamples:
    """Files as one set, in order; those without a sample are passed over. Raises InvalidInputError."""
    pieces = [piece for piece in _paired({path: read(path) for path in paths}) if len(piece)]
    if not pieces:
        raise bad(f"no samples in {', '.join(path.name for path in paths)}", "at least one sample is needed")
    first = pieces[0]
    for piece in pieces[1:]:
        if {name: array.shape[1:] for name, array in piece.arrays.items()} != {
            name: array.shape[1:] for name, array in first.arrays.items()
        }:
            raise bad(
                f"{piece.name} holds {_forms(piece)}, where {first.name} holds {_forms(first)}",
                "all files of a job hold samples of one form",
            )
    return ArraySamples(tuple(_alike(pieces)))


def _paired(pieces: Mapping[Path, Piece]) -> list[Piece]:
    """Joins NAMEx.npy and NAMEy.npy of one folder, which hold the two arrays of one piece."""
    paired = []
    for path, piece in pieces.items():
        if path.name.endswith("y.npy") and path.with_name(f"{path.name[:-5]}x.npy") in pieces:
            continue
        other = pieces.get(path.with_name(f"{path.name[:-5]}y.npy")) if path.name.endswith("x.npy") else None
        if other is None:
            paired.append(piece)
        elif len(other) != len(piece):
            raise bad(f"{piece.name} has {len(piece)} samples, {other.name} {len(other)}", "one y for each x")
        else:
            paired.append(replace(piece, arrays={"x": piece.arrays["x"], "y": other.arrays["x"]}))
    return paired


def _alike(pieces: list[Piece]) -> list[Piece]:
    """Element types that every piece can be read as: of several, the one that holds all."""
    types = {name: np.result_type(*(piece.arrays[name].dtype for piece in pieces)) for name in pieces[0].arrays}
    return [
        piece
        if all(array.dtype == types[name] for name, array in piece.arrays.items())
        else replace(piece, arrays={name: array.astype(types[name]) for name, array in piece.arrays.items()})
        for piece in pieces
    ]


def _forms(piece: Piece) -> str:
    return ", ".join(f"{name} {list(array.shape[1:])}" for name, array in piece.arrays.items())

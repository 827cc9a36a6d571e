"""Which files a worker's part of a checkpoint has, with their sums: damage is seen before anything is read."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from meshkit.errors import AimeshError, DataLossError, InvalidInputError
from meshkit.files import write_atomically

_ENDING = ".sums.json"
_BLOCK = 1 << 20
_HINT = "the part is fetched again at the next start; a copy of it lies on another node of the job"


@dataclass(frozen=True)
class Part:
    """What one worker has written."""

    rank: int
    step: int
    world_size: int
    files: dict[str, tuple[int, int]]
    """Bytes and CRC-32 by name. Against damage only: against malice there are the digests of blobs."""


def write_sums(folder: Path, rank: int, step: int, world_size: int) -> None:
    """Writes the sums of all files in a folder beside them, under a name that no other worker uses."""
    files = {path.name: sum_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    part = Part(rank, step, world_size, files)
    write_atomically(folder / f"__{rank}{_ENDING}", json.dumps(asdict(part)).encode())


def verify(folder: Path) -> Part:
    """Holds a whole checkpoint against its sums. Returns rank 0's.

    Raises DataLossError that names the file which is missing or damaged, and InvalidInputError (BAD_CHECKPOINT) when
    the parts are of different checkpoints.
    """
    parts = {part.rank: part for part in map(_read, sorted(folder.glob(f"__*{_ENDING}")))}
    first = parts.get(0)
    if first is None:
        raise _lost(f"checkpoint {folder} has no __0{_ENDING}, which rank 0 writes")
    for rank in range(first.world_size):
        part = parts.get(rank)
        if part is None:
            raise _lost(f"checkpoint {folder} has no part of rank {rank}: __{rank}{_ENDING} is missing")
        if (part.step, part.world_size) != (first.step, first.world_size):
            raise _mixed(folder, first, part)
        for name, (size, crc) in part.files.items():
            _check(folder / name, size, crc)
    return first


def sum_of(path: Path) -> tuple[int, int]:
    """Bytes and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def _read(path: Path) -> Part:
    try:
        said = json.loads(path.read_text())
        files = {str(name): (int(size), int(crc)) for name, (size, crc) in said["files"].items()}
        return Part(int(said["rank"]), int(said["step"]), int(said["world_size"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _lost(f"{path} is damaged: {error}") from error


def _check(path: Path, size: int, crc: int) -> None:
    if not path.is_file():
        raise _lost(f"{path} is missing")
    found = sum_of(path)
    if found[0] != size:
        raise _lost(f"{path} has {found[0]} bytes, not {size}")
    if found[1] != crc:
        raise _lost(f"{path} is damaged: its sum is {found[1]:08x}, not {crc:08x}")


def _mixed(folder: Path, one: Part, other: Part) -> AimeshError:
    return InvalidInputError(
        f"checkpoint {folder}: rank {one.rank}'s part is of step {one.step} and {one.world_size} workers, "
        f"rank {other.rank}'s of step {other.step} and {other.world_size}",
        hint="the parts of different checkpoints were mixed up; gather those of one",
        reason="BAD_CHECKPOINT",
    )


def _lost(message: str) -> DataLossError:
    return DataLossError(message, hint=_HINT)

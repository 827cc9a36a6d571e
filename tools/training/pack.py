"""What a job file names, ready for upload: the code as an archive, each data file with its digests."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aimesh.training.v1 import training_pb2
from meshkit.chunks import digests_of
from meshkit.errors import InvalidInputError
from tools.training.jobfile import JobFile

MOST_CODE = 64 << 20
"""Bytes of all files of a job's code."""
MOST_FILES = 5000
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_CLUTTER = ("__pycache__", "node_modules")


@dataclass(frozen=True)
class Packed:
    """A job with every digest filled in, and where the blobs are."""

    spec: training_pb2.JobSpec
    paths: Mapping[str, Path]
    """Digest -> file on this machine."""
    contents: Mapping[str, bytes]
    """Digest -> the code's archive, and chunk lists."""

    @property
    def bytes(self) -> int:
        """Of all files, and of the code."""
        return sum(path.stat().st_size for path in self.paths.values()) + sum(map(len, self.contents.values()))


def pack(job: JobFile) -> Packed:
    """Reads everything once. The same files give the same digests. Raises InvalidInputError."""
    spec = training_pb2.JobSpec()
    spec.CopyFrom(job.spec)
    paths: dict[str, Path] = {}
    contents: dict[str, bytes] = {}
    if job.code is not None:
        archive = archived(job.code)
        spec.code.archive = hashlib.sha256(archive).hexdigest()
        contents[spec.code.archive] = archive
    for path in job.files:
        digest, listed = digests_of(path)
        shard = spec.data.shards.add(name=path.name, digest=digest, bytes=path.stat().st_size)
        paths[digest] = path
        if listed:
            shard.chunk_list = hashlib.sha256(listed).hexdigest()
            contents[shard.chunk_list] = listed
    return Packed(spec, paths, contents)


def archived(code: Path) -> bytes:
    """A zip of a folder or of one file: the same bytes for the same names and contents. Raises InvalidInputError."""
    held = io.BytesIO()
    left = MOST_CODE
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in code_files(code):
            content = path.read_bytes()
            left -= len(content)
            if left < 0:
                raise InvalidInputError(
                    f"the code in {code} has more than {MOST_CODE >> 20} MiB",
                    hint="name data under data.files or data.path, not within the code",
                )
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return held.getvalue()


def code_files(code: Path) -> list[tuple[str, Path]]:
    """Names in the archive and files, by name: nothing hidden or compiled. Raises InvalidInputError."""
    if code.is_file():
        return [(code.name, code)]
    found = sorted((path.relative_to(code).as_posix(), path) for path in _walk(code))
    if not any(name.endswith(".py") for name, _ in found):
        raise InvalidInputError(f"the code in {code} holds no Python file", hint="name the folder of the trainer")
    if len(found) > MOST_FILES:
        raise InvalidInputError(f"the code in {code} has more than {MOST_FILES} files", hint="name a smaller folder")
    return found


def _walk(code: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(code):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _CLUTTER]
        for name in [*folders, *files]:
            path = Path(root) / name
            if path.is_symlink() and not path.resolve().is_relative_to(code.resolve()):
                raise InvalidInputError(
                    f"{path} is a link to {path.resolve()}, outside the code", hint="copy what it leads to"
                )
        for name in files:
            if not name.startswith(".") and not name.endswith(".pyc") and (Path(root) / name).is_file():
                yield Path(root) / name

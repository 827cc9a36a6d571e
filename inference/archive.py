"""Unpacks .zip and .tar archives of a model without letting them write outside their directory."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from meshkit.errors import InvalidInputError

MAX_BYTES = 1 << 40
MAX_MEMBERS = 100_000


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, or a zip archive that torch did not write.

    torch's own files (TorchScript, exported programs) are zip archives too; they hold a `version` or `.data/version`
    record below one directory and are models in themselves.
    """
    if tarfile.is_tarfile(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(_is_torch_record(name) for name in archive.namelist())


def unpack(path: Path, target: Path) -> None:
    """Unpacks into an empty directory. Raises InvalidInputError for absolute paths, '..', links, devices, bad data."""
    try:
        if tarfile.is_tarfile(path):
            _unpack_tar(path, target)
        else:
            _unpack_zip(path, target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InvalidInputError(f"archive {path.name} cannot be read: {error}", hint="pack it again") from None


def _unpack_tar(path: Path, target: Path) -> None:
    with tarfile.open(path) as archive:
        left = MAX_BYTES
        for count, member in enumerate(archive):
            if not (member.isdir() or member.isreg()):
                raise _refusal(path, member.name, "is a link or a device")
            place = _place(path, target, member.name, count)
            if member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                left = _write(path, content, place, left)
        _check_end(path, archive)


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros; Python's reader takes one that was cut between two members for whole."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise InvalidInputError(f"archive {path.name} is cut short", hint="copy or pack it again", reason="TRUNCATED")


def _unpack_zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        left = MAX_BYTES
        for count, member in enumerate(archive.infolist()):
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(path, member.filename, "is a link or a device")
            if member.flag_bits & 1:
                raise _refusal(path, member.filename, "is encrypted")
            place = _place(path, target, member.filename, count)
            if not member.is_dir():
                with archive.open(member) as content:
                    left = _write(path, content, place, left)


def _place(path: Path, target: Path, name: str, count: int) -> Path:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise _refusal(path, name, "leads out of the archive")
    if count >= MAX_MEMBERS:
        raise InvalidInputError(f"archive {path.name} has more than {MAX_MEMBERS} members")
    return target.joinpath(*parts)


def _write(path: Path, content: IO[bytes], place: Path, left: int) -> int:
    place.parent.mkdir(parents=True, exist_ok=True)
    # "x": a second member of the same name is a trick, or a mistake.
    with place.open("xb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
        left -= file.tell()
    if left < 0:
        raise InvalidInputError(f"archive {path.name} unpacks to more than {MAX_BYTES >> 30} GiB")
    return left


def _refusal(path: Path, member: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"archive {path.name}: member {member!r} {why}",
        hint="pack plain files below one directory",
        reason="ARCHIVE_PATH",
    )


def _is_torch_record(name: str) -> bool:
    return name.count("/") >= 1 and name.split("/", 1)[1] in ("version", ".data/version", "archive_format", "data.pkl")

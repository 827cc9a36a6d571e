"""Unpacks a job's code: a zip archive that came from a user, and must not write outside its folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from meshkit.errors import AimeshError, InvalidInputError
from node_agent.training.folder import checked_path

MOST_BYTES = 1 << 30
MOST_MEMBERS = 20_000


def unpack(archive: Path, target: Path) -> None:
    """Into a folder that is made. Raises InvalidInputError for links, '..', too much, and broken archives."""
    target.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if len(members) > MOST_MEMBERS:
                raise _refusal(f"has more than {MOST_MEMBERS} members")
            left = MOST_BYTES
            for member in members:
                left -= _write(opened, member, target, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, FileExistsError) as error:
        raise _refusal(f"cannot be read: {error}") from None


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Bytes written."""
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refusal(f"holds {member.filename!r}, which is a link or a device")
    place = target / checked_path(member.filename, "the code's archive holds")
    if member.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        return 0
    if member.file_size > left:
        raise _refusal(f"unpacks to more than {MOST_BYTES >> 20} MiB")
    place.parent.mkdir(parents=True, exist_ok=True)
    # zipfile itself reads no more than file_size bytes, and checks their sum.
    with opened.open(member) as content, place.open("xb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    return member.file_size


def _refusal(why: str) -> AimeshError:
    return InvalidInputError(f"the code's archive {why}", hint="pack it again: a zip of plain files and folders")

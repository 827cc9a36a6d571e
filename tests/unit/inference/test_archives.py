from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from inference.packaging import package
from meshkit.errors import InvalidInputError
from tests.unit.inference.samples import write_gguf, write_python

Mode = Literal["w", "w:gz"]


def tar_of(path: Path, mode: Mode, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as archive:
        for member in members:
            member.size = 1 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"x"))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("inside", ["", "model/"])
def test_an_archive_of_a_model_directory(tmp_path: Path, suffix: str, inside: str) -> None:
    root = write_python(tmp_path / "any")
    path = tmp_path / f"m.{suffix}"
    names = ("config.pbtxt", "1/model.py")
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.write(root / name, inside + name)
    else:
        with tarfile.open(path, "w:gz" if suffix == "tar.gz" else "w") as tar:
            for name in names:
                tar.add(root / name, inside + name)
    with package(path, "m", "1.0.0") as found:
        assert found.version.runtime == "python"
        assert [file.path for file in found.version.files] == ["1/model.py", "config.pbtxt"]
        places = list(found.paths.values())
        assert all(place.exists() for place in places)
    assert not any(place.exists() for place in places)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("/etc/x"), "leads out"),
        (member("../x"), "leads out"),
        (member("a/../../x"), "leads out"),
        (member("a\\..\\x"), "leads out"),
        (member("x", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (member("x", tarfile.LNKTYPE, "/etc/passwd"), "link or a device"),
        (member("x", tarfile.CHRTYPE), "link or a device"),
        (member("x", tarfile.FIFOTYPE), "link or a device"),
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_path_tricks_in_a_tar(tmp_path: Path, bad: tarfile.TarInfo, why: str, mode: Mode) -> None:
    path = tar_of(tmp_path / "m.tar", mode, member("fine"), bad)
    with pytest.raises(InvalidInputError, match=why) as caught:
        package(path, "m", "1.0.0")
    assert caught.value.reason == "ARCHIVE_PATH"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tar"]


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a\\..\\x"])
def test_path_tricks_in_a_zip(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
        packed.writestr(name, b"x")
    with pytest.raises(InvalidInputError, match="leads out"):
        package(tmp_path / "m.zip", "m", "1.0.0")


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
        packed.writestr(info, b"/etc/passwd")
    with pytest.raises(InvalidInputError, match="link or a device"):
        package(tmp_path / "m.zip", "m", "1.0.0")


def test_a_member_that_comes_twice(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "m.tar", "w", member("x"), member("x"))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        package(path, "m", "1.0.0")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_that_is_cut_short(tmp_path: Path, mode: Mode) -> None:
    write_gguf(tmp_path / "m.gguf")
    with tarfile.open(tmp_path / "m.tar", mode) as tar:
        tar.add(tmp_path / "m.gguf", "m.gguf")
    whole = (tmp_path / "m.tar").read_bytes()
    (tmp_path / "m.tar").write_bytes(whole[: len(whole) // 4 if mode == "w" else len(whole) - 30])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        package(tmp_path / "m.tar", "m", "1.0.0")


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is empty"):
        package(tar_of(tmp_path / "m.tar", "w"), "m", "1.0.0")


@pytest.mark.parametrize("cut", [1024, 1024 + 200, 2048])
def test_a_tar_that_was_cut_between_members_is_refused(tmp_path: Path, cut: int) -> None:
    root = write_python(tmp_path / "any")
    whole = tmp_path / "m.tar"
    with tarfile.open(whole, "w") as tar:
        for name in ("config.pbtxt", "1/model.py"):
            tar.add(root / name, name)
    whole.write_bytes(whole.read_bytes()[:cut])
    with pytest.raises(InvalidInputError, match=r"cut short|cannot be read|no known model format"):
        package(whole, "m", "1.0.0")

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from aimesh.training.v1 import training_pb2
from meshkit.chunks import CHUNK
from meshkit.errors import InvalidInputError
from tools.training import pack as module
from tools.training.jobfile import JobFile
from tools.training.pack import archived, pack


def folder(root: Path) -> Path:
    for name in ("train.py", "deep/more.py", "words.json", ".git/config", "__pycache__/train.pyc", ".env", "a.pyc"):
        path = root / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root / "code"


def held(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_archive_has_what_is_the_job_s_and_nothing_else(tmp_path: Path) -> None:
    found = held(archived(folder(tmp_path)))
    assert list(found) == ["deep/more.py", "train.py", "words.json"]
    assert found["train.py"] == b"train.py"


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    code = folder(tmp_path)
    first = archived(code)
    os.utime(code / "train.py", (1, 1))
    (code / "words.json").chmod(0o600)
    (code / "__pycache__" / "new.pyc").write_text("compiled")
    assert archived(code) == first
    (code / "train.py").write_text("changed")
    assert archived(code) != first


def test_one_file_is_an_archive_too(tmp_path: Path) -> None:
    assert held(archived(folder(tmp_path) / "train.py")) == {"train.py": b"train.py"}


def test_what_cannot_be_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="holds no Python file"):
        archived(tmp_path / "empty")
    code = folder(tmp_path)
    (code / "inner.py").symlink_to("train.py")
    assert held(archived(code))["inner.py"] == b"train.py"
    (code / "link.py").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInputError, match=r"link\.py is a link to /etc/hostname, outside"):
        archived(code)
    (code / "link.py").unlink()
    monkeypatch.setattr(module, "MOST_CODE", 10)
    with pytest.raises(InvalidInputError, match="has more than"):
        archived(code)
    monkeypatch.setattr(module, "MOST_FILES", 1)
    with pytest.raises(InvalidInputError, match="more than 1 files"):
        archived(code)


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.npy"
    small.write_bytes(b"1,2\n")
    with large.open("wb") as file:
        file.truncate(CHUNK + 1)
    spec = training_pb2.JobSpec(name="n")
    packed = pack(JobFile(tmp_path / "job.toml", spec, folder(tmp_path), (small, large)))
    first, second = packed.spec.data.shards
    assert (first.name, first.digest, first.bytes, first.chunk_list) == (
        "small.csv",
        hashlib.sha256(b"1,2\n").hexdigest(),
        4,
        "",
    )
    assert hashlib.sha256(packed.contents[second.chunk_list]).hexdigest() == second.chunk_list
    assert packed.paths == {first.digest: small, second.digest: large}
    assert hashlib.sha256(packed.contents[packed.spec.code.archive]).hexdigest() == packed.spec.code.archive
    assert packed.bytes == 4 + CHUNK + 1 + sum(map(len, packed.contents.values()))
    assert not spec.data.shards

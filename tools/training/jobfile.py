"""A job in a TOML file: aimesh.training.v1.JobSpec with the contract's own field names, and files of this machine.

Files of this machine are named instead of uploaded: `code.path` stands for code.archive, `data.files` for data.shards.
Paths are relative to the file. Every key: training/examples/full.toml.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tools.training.values import check_keys, keys_of, table

UPLOADED = {"Code": ("archive",), "Data": ("shards",)}
"""Fields that are filled in when what they stand for is uploaded."""
FORMS = (".npz", ".safetensors", ".npy", ".csv", ".jsonl", ".txt")
"""Endings of data files."""


@dataclass(frozen=True)
class JobFile:
    """A job as its file says it, and what has to be uploaded for it."""

    path: Path
    spec: training_pb2.JobSpec
    """Without the digest of the code and without shards."""
    code: Path | None = None
    """A folder, or one Python file."""
    files: tuple[Path, ...] = field(default=())
    """Data files, in the order in which their samples come."""


def read_job(path: Path) -> JobFile:
    """The job in a file. Raises InvalidInputError that names the key, its value and what it takes."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInputError(
            f"job file {path} cannot be read: {why}", hint="name a TOML file; training/examples/ has some"
        ) from None
    return parse_job(found, path)


def parse_job(found: dict[str, Any], path: Path) -> JobFile:
    """The same from the file's plain values."""
    where, folder = f"{path.name}:", path.parent
    if isinstance(found.get("tune"), dict):
        raise InvalidInputError(
            f"{where} tune: this is a study of many jobs, not one job", hint=f"start it: aimesh train tune start {path}"
        )
    check_keys(found, keys_of(training_pb2.JobSpec.DESCRIPTOR, UPLOADED), where)
    plain = dict(found)
    code = _take_code(plain, where, folder)
    files = _take_files(plain, where, folder)
    spec = training_pb2.JobSpec()
    json_format.ParseDict(table(plain, training_pb2.JobSpec.DESCRIPTOR, where, UPLOADED), spec)
    if spec.data.path:
        spec.data.path = str((folder / spec.data.path).absolute())
    return JobFile(path, spec, code, files)


def _take_code(plain: dict[str, Any], where: str, folder: Path) -> Path | None:
    """Takes `path` out of the table `code`; of one file, the class is Trainer unless it is named."""
    if "code" not in plain:
        return None
    check_keys(plain["code"], ("path", "entry"), f"{where} code")
    code = dict(plain["code"])
    path = folder / _text(code.pop("path", None), f"{where} code.path", "a folder or a Python file")
    if not path.is_dir() and not (path.is_file() and path.suffix == ".py"):
        raise InvalidInputError(
            f"{where} code.path {path} is no folder and no Python file", hint="paths are relative to the job file"
        )
    if path.is_file():
        code.setdefault("entry", f"{path.stem}:Trainer")
    if "entry" not in code:
        raise InvalidInputError(f"{where} code.entry is missing", hint='MODULE:CLASS in that folder: "train:Trainer"')
    plain["code"] = code
    return path


def _take_files(plain: dict[str, Any], where: str, folder: Path) -> tuple[Path, ...]:
    """Takes `files` out of the table `data`, with folders and patterns spelt out."""
    data = plain.get("data", {})
    check_keys(data, [*keys_of(training_pb2.Data.DESCRIPTOR, UPLOADED), "files"], f"{where} data")
    if "files" not in data:
        return ()
    named = data["files"]
    if not isinstance(named, list) or not named:
        raise InvalidInputError(f"{where} data.files must be a list of files, not {named!r}")
    plain["data"] = {key: value for key, value in data.items() if key != "files"}
    found = [path for name in named for path in _matching(name, where, folder)]
    names = [path.name for path in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(
            f"{where} data.files has {twice[0]} twice", hint="files of a job need names of their own: rename one"
        )
    return tuple(found)


def _matching(name: object, where: str, folder: Path) -> list[Path]:
    """The data files that one entry stands for, by name."""
    text = _text(name, f"{where} data.files", "a file, a folder or a pattern such as parts/*.npz")
    if (folder / text).is_dir():
        found = [path for path in (folder / text).iterdir() if path.suffix.lower() in FORMS]
    elif "*" in text or "?" in text:
        root, pattern = (Path("/"), text[1:]) if text.startswith("/") else (folder, text)
        found = [path for path in root.glob(pattern) if path.is_file()]
    else:
        found = [folder / text]
    for path in found:
        if not path.is_file() or path.suffix.lower() not in FORMS:
            missing = "does not exist" if not path.exists() else "is of no known form"
            raise InvalidInputError(f"{where} data.files: {path} {missing}", hint=f"known forms: {', '.join(FORMS)}")
        if not path.stat().st_size:
            raise InvalidInputError(f"{where} data.files: {path} is empty", hint="leave it out")
    if not found:
        raise InvalidInputError(f"{where} data.files: {text!r} matches no file", hint="it is relative to the job file")
    return sorted(found)


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{where} must be {what}" + (f", not {value!r}" if value is not None else ""))
    return value

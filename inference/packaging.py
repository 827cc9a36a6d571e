"""The push side: files on disk become a ModelVersion (what the registry keeps) and blobs by digest."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from aimesh.registry.v1 import registry_pb2
from inference import archive, self_test
from inference.formats import embed, llama, onnx, python, torch
from inference.formats.source import Description, Source, Wishes
from inference.signature import parse_tensor
from meshkit.chunks import digests_of
from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name, check_version

ZIP_MAGIC = b"PK\x03\x04"
RESERVED_PARAMETERS = ("entry", "EXECUTION_ENV_PATH")


@dataclass(frozen=True)
class Format:
    """What a runtime's module does for the push side."""

    recognises: Callable[[Source], bool]
    describe: Callable[[Source, Wishes], Description]


# In the order of asking: what has a sure mark first; ONNX, which has none, last.
FORMATS: Mapping[str, Format] = {
    "python": Format(python.recognises, python.describe),
    "embed": Format(embed.recognises, embed.describe),
    "llama": Format(llama.recognises, llama.describe),
    "torch": Format(torch.recognises, torch.describe),
    "onnx": Format(onnx.recognises, onnx.describe),
}


@dataclass(frozen=True)
class Package:
    """A version ready to be recorded, and where its blobs lie. Close it (or use `with`) after the upload."""

    version: registry_pb2.ModelVersion
    paths: Mapping[str, Path]
    """Digest -> file on this machine."""
    lists: Mapping[str, bytes] = field(default_factory=dict)
    """Digest -> chunk list (see meshkit.chunks), of the files of more than one chunk."""
    unpacked: tempfile.TemporaryDirectory[str] | None = None
    """Where an archive was unpacked."""

    def close(self) -> None:
        """Removes what an archive was unpacked to."""
        if self.unpacked is not None:
            self.unpacked.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def package(
    path: Path,
    name: str,
    version: str,
    runtime: str | None = None,
    parameters: Mapping[str, str] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Package:
    """Describes a file, a directory or an archive (.zip, .tar, .tar.gz) of one as a model version.

    The runtime is found by content unless it is named. `inputs` and `outputs` are "name:FP32:-1x3", for TorchScript,
    which does not say them. Reads all bytes once for their digests. Raises InvalidInputError.
    """
    check_model_name(name)
    check_version(version)
    wishes = Wishes(_checked(parameters or {}), tuple(map(parse_tensor, inputs)), tuple(map(parse_tensor, outputs)))
    if not path.exists():
        raise InvalidInputError(f"{path} does not exist", reason="PATH_MISSING")
    if path.is_dir() or not archive.is_archive(path):
        return _package(path, name, version, runtime, wishes, None)
    unpacked = tempfile.TemporaryDirectory(prefix="aimesh-push-")
    try:
        archive.unpack(path, Path(unpacked.name))
        return _package(_inner(Path(unpacked.name)), name, version, runtime, wishes, unpacked)
    except BaseException:
        unpacked.cleanup()
        raise


def detect(source: Source) -> str:
    """The runtime whose format the files are. Raises InvalidInputError when there is none."""
    for runtime, known in FORMATS.items():
        if known.recognises(source):
            return runtime
    if any(source.head(name, 4) == ZIP_MAGIC for name in source.files):
        raise InvalidInputError(
            f"{source.name} is a zip archive that is cut short or holds no model", hint="save, pack or copy it again"
        )
    raise InvalidInputError(
        f"{source.name}: no known model format",
        hint="push a GGUF or ONNX file, a torch.export program, TorchScript, a sentence-transformers directory, or a"
        " directory with config.pbtxt and 1/model.py",
        reason="UNKNOWN_FORMAT",
    )


def _package(
    path: Path,
    name: str,
    version: str,
    runtime: str | None,
    wishes: Wishes,
    unpacked: tempfile.TemporaryDirectory[str] | None,
) -> Package:
    source = _source(path)
    runtime = _check_runtime(source, runtime) if runtime else detect(source)
    description = FORMATS[runtime].describe(source, wishes)
    lists: dict[str, bytes] = {}
    files = [_file(source, one, lists) for one in sorted(description.files)]
    return Package(
        registry_pb2.ModelVersion(
            name=name,
            version=version,
            runtime=runtime,
            files=files,
            signature=description.signature,
            requirements=description.requirements,
            parameters=description.parameters,
            self_test=_self_test(source, description),
        ),
        {file.digest: source.path(file.path) for file in files},
        lists,
        unpacked,
    )


def _checked(parameters: Mapping[str, str]) -> Mapping[str, str]:
    for key in RESERVED_PARAMETERS:
        if key in parameters:
            raise InvalidInputError(f"parameter {key!r} is set by the mesh", hint="leave it out")
    return parameters


def _check_runtime(source: Source, runtime: str) -> str:
    if runtime not in FORMATS:
        raise InvalidInputError(f"unknown runtime {runtime!r}", hint=f"known: {', '.join(sorted(FORMATS))}")
    if not FORMATS[runtime].recognises(source):
        raise InvalidInputError(
            f"{source.name} holds nothing that runtime {runtime} can run",
            hint="leave the runtime out to have it found by content",
            reason="WRONG_FORMAT",
        )
    return runtime


def _source(path: Path) -> Source:
    if path.is_file():
        source = Source(path.parent, (path.name,), path.name)
    else:
        found = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        source = Source(path, tuple(sorted(file.as_posix() for file in found if not _is_clutter(file))), path.name)
    if not source.files:
        raise InvalidInputError(f"{path} is empty", hint="push the model's files", reason="EMPTY")
    for name in source.files:
        if "\\" in name or not name.isprintable():
            raise InvalidInputError(
                f"file name {name!r} is not allowed", hint="rename it: no '\\', no control characters"
            )
    if not source.size(source.files):
        raise InvalidInputError(f"{path} is empty", hint="push the model's files", reason="EMPTY")
    return source


def _inner(root: Path) -> Path:
    """The one directory that an archive holds, or the place itself."""
    entries = list(root.iterdir())
    # A version directory "1" belongs to a model directory; it is never one.
    single = len(entries) == 1 and entries[0].is_dir() and entries[0].name != "1"
    return entries[0] if single else root


def _is_clutter(relative: PurePosixPath | Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _file(source: Source, name: str, lists: dict[str, bytes]) -> registry_pb2.ModelFile:
    """The file as it is recorded; its chunk list, if it has one, goes into `lists`."""
    path = source.path(name)
    digest, listed = digests_of(path)
    file = registry_pb2.ModelFile(path=name, digest=digest, size=path.stat().st_size)
    if listed:
        file.chunks = hashlib.sha256(listed).hexdigest()
        lists[file.chunks] = listed
    return file


def _self_test(source: Source, description: Description) -> str:
    if self_test.FILE not in source.files or len(source.files) == 1:
        return description.self_test
    return self_test.check_self_test(source.path(self_test.FILE).read_text(), description.signature)

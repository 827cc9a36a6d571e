"""Lays model versions out in Triton's model repository: <repository>/<name>/config.pbtxt and <name>/1/…"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath

from aimesh.registry.v1 import registry_pb2
from meshkit.blobs import sha256_of
from meshkit.errors import InvalidInputError, PreconditionError
from node_agent.modelconfig import NO_EXTRAS, Extras, adapt_config, key_in, render_config
from node_agent.store import link_or_copy

CONFIG = "config.pbtxt"


class Repository:
    """Triton's model repository below `data_dir`. Blocks on the disk."""

    def __init__(self, data_dir: Path, runtimes_dir: Path, environment: str, blob_path: Callable[[str], Path]) -> None:
        """`environment` is the virtual environment of Python models; `blob_path` gives a digest's file."""
        self.root = data_dir / "repository"
        self._staging = data_dir / "staging"
        self._runtimes_dir = runtimes_dir
        self._environment = environment
        self._blob_path = blob_path

    def prepare(self) -> None:
        """Makes its directories where they lack."""
        for directory in (self.root, self._staging):
            directory.mkdir(parents=True, exist_ok=True)

    def clear(self, keep: Collection[str] = ()) -> None:
        """Removes all models but those to keep: a crash may have left anything."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self.prepare()
        for path in self.root.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def key_of(self, name: str) -> str:
        """What the model is laid out as (`modelconfig.KEY`); empty when it is not there, or not by this class."""
        try:
            return key_in((self.root / _folder(name) / CONFIG).read_text(errors="replace"))
        except OSError:
            return ""

    def template_digest(self, runtime: str) -> str:
        """Of the runtime's model.py as it is installed now; empty for a user's own model, and for no such runtime."""
        template = self._runtimes_dir / _folder(runtime) / "model.py"
        return sha256_of(template)[:16] if runtime != "python" and template.exists() else ""

    def lay_out(self, version: registry_pb2.ModelVersion, gpu: int | None = None, extras: Extras = NO_EXTRAS) -> Path:
        """Puts a version in place of whatever version of its name is there. Blobs must be held.

        `gpu` is the index of the GPU for a model that needs one; a user's own configuration says itself where it runs.

        Raises InvalidInputError on a path that would leave the model's folder or a config.pbtxt that is none,
        PreconditionError when its runtime is not installed or there is no GPU for it.
        """
        name = _folder(version.name)
        staged = self._staging / name
        shutil.rmtree(staged, ignore_errors=True)
        (staged / "1").mkdir(parents=True)
        if version.runtime == "python":
            self._stage_own(version, staged, extras)
        else:
            self._stage_template(version, staged, gpu, extras)
        self.remove(name)
        return staged.rename(self.root / name)

    def folder(self, version: registry_pb2.ModelVersion) -> Path:
        """Where a version's own files lie, once it is laid out."""
        root = self.root / _folder(version.name)
        return root if version.runtime == "python" else root / "1"

    def manifest(self, version: registry_pb2.ModelVersion) -> dict[str, str]:
        """sha256 of each file of a version that has just been laid out, by path below the model's folder.

        A blob's is the one that it is to have; what this class wrote is read.
        """
        root = self.root / _folder(version.name)
        own = self.folder(version).relative_to(root)
        found = {(own / _relative(file.path)).as_posix(): file.digest for file in version.files}
        written = [CONFIG] if version.runtime == "python" else [CONFIG, "1/model.py"]
        return {**found, **{path: sha256_of(root / path) for path in written}}

    def damaged(self, name: str, manifest: Mapping[str, str], verified: Collection[str] = ()) -> list[str]:
        """Paths whose content is not what the manifest says. Links to blobs that were just verified are not read."""
        root = self.root / _folder(name)
        return [path for path, digest in manifest.items() if not self._is(root / path, digest, verified)]

    def drop_bytecode(self, name: str) -> None:
        """Removes what Python compiled of a model: it is in no manifest, and is made anew from what is."""
        for directory in (self.root / _folder(name)).rglob("__pycache__"):
            shutil.rmtree(directory, ignore_errors=True)

    def _is(self, path: Path, digest: str, verified: Collection[str]) -> bool:
        try:
            if digest in verified and path.samefile(self._blob_path(digest)):
                return True
            return sha256_of(path) == digest
        except OSError:
            return False

    def remove(self, name: str) -> None:
        """Removes a model; nothing happens when it is not there."""
        target, doomed = self.root / _folder(name), self._staging / f"{name}.removed"
        if target.exists():
            shutil.rmtree(doomed, ignore_errors=True)
            target.rename(doomed)  # at once for Triton, which may look at any moment
            shutil.rmtree(doomed)

    def _stage_own(self, version: registry_pb2.ModelVersion, staged: Path, extras: Extras) -> None:
        """The user's own Triton model: files as they are, but for the name and environment in its configuration."""
        for file in version.files:
            _link(self._blob_path(file.digest), staged / _relative(file.path))
        config = staged / CONFIG
        if not config.exists():
            raise InvalidInputError(f"model {version.name} {version.version} has no {CONFIG}")
        text = config.read_text(errors="replace")
        config.unlink()  # the blob itself is behind this name
        config.write_text(adapt_config(text, version.name, self._environment, extras))

    def _stage_template(
        self, version: registry_pb2.ModelVersion, staged: Path, gpu: int | None, extras: Extras
    ) -> None:
        """The runtime's model.py, with the version's files beside it."""
        template = self._runtimes_dir / _folder(version.runtime) / "model.py"
        if not template.exists():
            raise PreconditionError(
                f"runtime {version.runtime!r} of model {version.name} is not installed: there is no {template}",
                hint="install the runtime on this node, or set agent.runtimes_dir",
            )
        for file in version.files:
            relative = _relative(file.path)
            if relative == PurePosixPath("model.py"):
                raise InvalidInputError(f"model {version.name}: model.py is the runtime's own file, rename yours")
            _link(self._blob_path(file.digest), staged / "1" / relative)
        shutil.copyfile(template, staged / "1" / "model.py")
        (staged / CONFIG).write_text(render_config(version, self._environment, gpu, extras))


def _folder(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidInputError(f"{name!r} cannot be the name of a folder")
    return name


def _relative(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if not path or "\0" in path or pure.is_absolute() or any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidInputError(f"{path!r} is no path below the model's folder (relative, without '.' and '..')")
    return pure


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        link_or_copy(source, target)
    except FileExistsError:
        raise InvalidInputError(f"two files of the model have the path {target.name!r}") from None

"""What the formats work on: the files of a push, and what is found out about them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError

MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """Files below one directory."""

    root: Path
    files: tuple[str, ...]
    """Relative paths with '/', sorted."""
    name: str
    """What the person pushed, for messages."""

    def path(self, name: str) -> Path:
        """Where a file lies on this machine."""
        return self.root / name

    def head(self, name: str, count: int = 64) -> bytes:
        """A file's first bytes."""
        with self.path(name).open("rb") as file:
            return file.read(count)

    def size(self, names: Iterable[str]) -> int:
        """Bytes of some files together."""
        return sum(self.path(name).stat().st_size for name in names)


@dataclass(frozen=True)
class Wishes:
    """What the person who pushes says about the model: runtime parameters and, for TorchScript, its tensors."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[registry_pb2.TensorSpec, ...] = ()
    outputs: tuple[registry_pb2.TensorSpec, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a format knows about its files. `files` are those that the runtime needs."""

    files: tuple[str, ...]
    signature: registry_pb2.Signature
    requirements: registry_pb2.Requirements
    parameters: Mapping[str, str]
    self_test: str = ""


def only_file(source: Source, names: list[str], what: str) -> str:
    """The one name in the list. Raises InvalidInputError when there are none or several."""
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise InvalidInputError(
            f"{source.name}: exactly one {what} is expected, found: {found}", hint="push the file itself"
        )
    return names[0]


def check_keys(parameters: Mapping[str, str], known: Iterable[str], runtime: str) -> None:
    """Raises InvalidInputError for a parameter that the runtime does not have."""
    allowed = sorted(known)
    for key in parameters:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(allowed)}"
            raise InvalidInputError(f"runtime {runtime} has no parameter {key!r}", hint=hint)


def whole_number(parameters: Mapping[str, str], key: str, default: int, least: int, most: int) -> int:
    """A parameter as a number. Raises InvalidInputError naming the range."""
    text = parameters.get(key, str(default))
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise InvalidInputError(f"parameter {key} = {text!r} is not allowed", hint=f"a whole number, {least} to {most}")
    return value


def check_device(parameters: Mapping[str, str]) -> bool:
    """Whether the parameter `device` asks for a GPU. Raises InvalidInputError when it is neither cpu nor cuda."""
    device = parameters.get("device", "cpu")
    if device not in ("cpu", "cuda"):
        raise InvalidInputError(f"parameter device = {device!r} is not allowed", hint="use cpu or cuda")
    return device == "cuda"


def refuse_tensors(wishes: Wishes, runtime: str) -> None:
    """Raises InvalidInputError when tensors were stated for a runtime that reads them from the model."""
    if wishes.inputs or wishes.outputs:
        raise InvalidInputError(
            f"inputs and outputs cannot be stated for runtime {runtime}",
            hint="they are read from the model: leave them out",
        )

"""A prompt's text: read from a file, and filled. `{{ name }}` is a place for a value; all else is the text's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aimesh.registry.v1 import registry_pb2
from meshkit.blobs import sha256_of
from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name, check_version

if TYPE_CHECKING:
    from inference.packaging import Package

_PLACE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


def read_prompt(path: Path, name: str, version: str) -> tuple[Package, str]:
    """The file as a version of a prompt, ready to be sent, and its text.

    Raises InvalidInputError when it is no UTF-8 text.
    """
    from inference.packaging import Package

    check_model_name(name)
    check_version(version)
    if not path.is_file():
        raise InvalidInputError(f"{path} is no file", hint="name a text file", reason="PATH_MISSING")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path} is no UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}",
            hint="save it as UTF-8",
        ) from None
    if not text.strip():
        raise InvalidInputError(f"{path} is empty", hint="push a text", reason="EMPTY")
    file = registry_pb2.ModelFile(path=path.name, digest=sha256_of(path), size=path.stat().st_size)
    recorded = registry_pb2.ModelVersion(name=name, version=version, kind=registry_pb2.KIND_PROMPT, files=[file])
    return Package(recorded, {file.digest: path}), text


def places(text: str) -> list[str]:
    """The names of a text's places, in the order in which they come first."""
    return list(dict.fromkeys(_PLACE.findall(text)))


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with a value in each place. Values are not looked at: what looks like a place in one stays as it is.

    Raises InvalidInputError naming the places without a value, and the values without a place.
    """
    known = places(text)
    missing = [name for name in known if name not in values]
    unknown = [name for name in values if name not in known]
    if missing:
        raise InvalidInputError(
            f"no value for {', '.join(missing)}", hint=" ".join(f"--var {name}=..." for name in missing)
        )
    if unknown:
        raise InvalidInputError(
            f"the prompt has no place for {', '.join(unknown)}", hint=f"it has: {', '.join(known) or 'none'}"
        )
    return _PLACE.sub(lambda place: values[place[1]], text)

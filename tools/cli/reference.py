"""How a version is named on the command line: NAME, NAME:VERSION or NAME@ALIAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshkit.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from tools.cli.target import Mesh


@dataclass(frozen=True)
class Reference:
    """A version as somebody named it; with neither version nor alias, the newest."""

    name: str
    version: str = ""
    alias: str = ""


def parse_reference(text: str) -> Reference:
    """'smollm2@champion' → Reference('smollm2', alias='champion'). Raises InvalidInputError."""
    name, at, alias = text.partition("@")
    name, colon, version = name.partition(":")
    if not name or (at and (colon or not alias)) or (colon and not version):
        raise InvalidInputError(f"{text!r} names no version", hint="write NAME, NAME:1.0.0 or NAME@champion")
    return Reference(name, version, alias)


def exact(text: str, example: str) -> tuple[str, str]:
    """Name and version of 'smollm2:1.0.0'. Raises InvalidInputError when it names no version."""
    found = parse_reference(text)
    if not found.version:
        raise InvalidInputError(f"{text!r} names no version", hint=example)
    return found.name, found.version


async def resolve(mesh: Mesh, reference: Reference) -> tuple[str, str]:
    """Name and version, of an alias the one that it stands for now; the version is empty for the newest.

    Raises NotFoundError for an alias that there is not.
    """
    from tools.cli.registry import get_model

    if not reference.alias:
        return reference.name, reference.version
    model = (await get_model(mesh, reference.name)).model
    if reference.alias not in model.aliases:
        raise NotFoundError(
            f"model {reference.name!r} has no alias {reference.alias!r}",
            hint=f"it has {', '.join(sorted(model.aliases)) or 'none'}",
            reason="ALIAS_NOT_FOUND",
        )
    return reference.name, model.aliases[reference.alias]

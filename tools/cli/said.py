"""What a push says of a version besides its content: options that models and prompts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import parse_pairs

if TYPE_CHECKING:
    from aimesh.registry.v1 import registry_pb2
    from tools.cli.target import Mesh

Changelog = Annotated[str, typer.Option(metavar="TEXT", help="What is new in it. @FILE takes a file's text.")]
Source = Annotated[
    str, typer.Option(metavar="TEXT", help="What it was made from: a job, an address. The path's name when not given.")
]
Detail = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="More of where it comes from: commit, dataset ...")
]
Replaces = Annotated[
    str,
    typer.Option(metavar="VERSION", help="The version that it takes the place of; else the newest lower of its major."),
]
Tag = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A tag. Any number of them.")]
Alias = Annotated[
    list[str] | None, typer.Option(metavar="ALIAS", help="Points an alias at it, and the deployment that follows it.")
]


@dataclass(frozen=True)
class Said:
    """What a push says."""

    changelog: str
    source: str
    details: Mapping[str, str]
    replaces: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    def tell(self, version: registry_pb2.ModelVersion) -> None:
        """Writes what is recorded with a version into it."""
        version.changelog = self.changelog
        version.replaces = self.replaces
        version.provenance.source = self.source
        version.provenance.details.update(self.details)


def read_said(
    path: Path,
    changelog: str,
    source: str,
    details: list[str] | None,
    replaces: str,
    tags: list[str] | None,
    aliases: list[str] | None,
) -> Said:
    """The options, read. Raises InvalidInputError before anything is sent."""
    return Said(
        _text(changelog),
        source or path.resolve().name,
        parse_pairs(details or [], "--detail"),
        replaces,
        parse_pairs(tags or [], "--tag"),
        tuple(aliases or ()),
    )


def record_said(mesh: Mesh, version: registry_pb2.ModelVersion, said: Said) -> None:
    """Tags the version that was recorded and moves its aliases; the version stays when that is refused."""
    from meshkit.errors import AimeshError
    from tools.cli.client import run
    from tools.cli.output import progress_console
    from tools.cli.registry import say_of

    if not said.tags and not said.aliases:
        return
    try:
        run(say_of(mesh, version, said.tags, said.aliases))
    except AimeshError:
        named = f"{version.name}:{version.version}"
        progress_console().print(f"{named} is recorded. Its tags and aliases are not, or not all:", soft_wrap=True)
        raise


def _text(changelog: str) -> str:
    """The text itself, or that of the file after an '@'."""
    from meshkit.errors import InvalidInputError

    if not changelog.startswith("@"):
        return changelog
    try:
        return Path(changelog[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"--changelog {changelog}: {error}", hint="name a text file, or give the text itself"
        ) from None

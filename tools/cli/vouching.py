"""What a push adds to a package before it is sent: a migration, and a signature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inference.packaging import Package

FOLDER = "migration"
"""Where a migration lies in a version when it is no file of the model."""

SignKey = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Sign it with this key (aimesh trust keygen), for the mesh to see.")
]
Migrate = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A program that each node runs before the version gets its first request there."),
]
MigrateTimeout = Annotated[str, typer.Option(metavar="TIME", help="How long it may take: 30s, 10m.")]


def with_migration(packed: Package, program: Path | None, timeout: str) -> Package:
    """The package with the migration among its files. Raises InvalidInputError when it cannot be one."""
    from aimesh.registry.v1 import registry_pb2
    from meshkit.blobs import sha256_of
    from meshkit.chunks import CHUNK
    from meshkit.errors import InvalidInputError
    from tools.cli.identity import parse_duration

    if program is None:
        return packed
    if not program.is_file() or not 0 < program.stat().st_size <= CHUNK:
        raise InvalidInputError(
            f"the migration {program} is no file of 1 to {CHUNK} bytes", hint="name a program, or a script with #!"
        )
    digest = sha256_of(program)
    held = next((file.path for file in packed.version.files if file.digest == digest), None)
    path = held or f"{FOLDER}/{program.name}"
    if held is None:
        packed.version.files.append(registry_pb2.ModelFile(path=path, digest=digest, size=program.stat().st_size))
        packed.version.files.sort(key=lambda file: file.path)
    packed.version.migration.path = path
    packed.version.migration.timeout.FromTimedelta(parse_duration(timeout))
    return replace(packed, paths={**packed.paths, digest: program})


def sign_package(packed: Package, key: Path | None) -> None:
    """Adds a signature of the version as it stands: nothing of it may be changed after."""
    from meshkit.signing import load_private, sign

    if key is not None:
        packed.version.signatures.append(sign(packed.version, load_private(key)))

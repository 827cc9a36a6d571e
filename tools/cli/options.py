"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Names the mesh: the directory that `aimesh up` keeps it in. "
        "Otherwise $AIMESH_STATE_DIR, $AIMESH_COORDINATORS and $AIMESH_GATEWAY, or ~/.local/state/aimesh.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def parse_pairs(texts: list[str], option: str = "--param") -> dict[str, str]:
    """['n_ctx=2048'] → {'n_ctx': '2048'}. Raises InvalidInputError."""
    from meshkit.errors import InvalidInputError

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"{option} {text!r} is not understood", hint=f"write {option} key=value")
        if key in found:
            raise InvalidInputError(f"{option} {key} is given twice")
        found[key] = value
    return found

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

"""The supervisor of a detached mesh, in a session of its own: python -m tools.local.daemon STATE_DIR WISHES.

WISHES is a JSON object of what was asked for (see supervisor.Request). It writes one JSON line to standard output,
{"ready": true} or {"error": {...}}, and logs to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from meshkit.errors import AimeshError
from meshkit.logs import LogSettings, configure_logs
from tools.local.record import MeshRecord
from tools.local.supervisor import Request, run_mesh


def main(arguments: list[str]) -> int:
    """Runs the mesh; gives the exit code."""
    state_dir, wishes = arguments
    configure_logs(LogSettings(), component="supervisor")
    told = False

    def listener(record: MeshRecord) -> None:
        nonlocal told
        if record.ready and not told:
            told = True
            _tell({"ready": True})

    request = Request(Path(state_dir), **json.loads(wishes))
    try:
        asyncio.run(run_mesh(request, listener))
    except AimeshError as error:
        _tell(
            {
                "error": {
                    "kind": type(error).__name__,
                    "message": error.message,
                    "hint": error.hint,
                    "reason": error.reason,
                }
            }
        )
        return error.exit_code
    return 0


def _tell(value: dict[str, object]) -> None:
    """Says it to whoever started this, if that still listens, and lets go of the pipe."""
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(value).encode() + b"\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""One agent a data directory, known again after a restart."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshkit.errors import ConflictError
from meshkit.files import write_atomically


@contextmanager
def hold_data_dir(data_dir: Path) -> Iterator[str]:
    """Locks the directory for this process and gives the instance id kept in it.

    The kernel drops the lock when the process dies, however it dies. Raises ConflictError when another agent has it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    # Not inherited by Triton (Python opens files that way), which may outlive a killed agent.
    with (data_dir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConflictError(
                f"{data_dir} is in use by another agent (pid {file.read().strip() or 'unknown'})",
                hint="end that agent, or give this one another data_dir",
                reason="DATA_DIR_IN_USE",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield _instance_id(data_dir / "instance_id")


def _instance_id(path: Path) -> str:
    if path.exists() and (kept := path.read_text().strip()):
        return kept
    made = uuid.uuid4().hex
    write_atomically(path, made.encode())
    return made

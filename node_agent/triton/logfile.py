"""Triton's log: a file that Triton writes to itself, so that no dead agent can block or end it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

_ERROR_LINE = re.compile(rb"^(error:|\S+ E |E\d{4} ).*|^.*(error while loading|[Ee]xception|Traceback).*", re.MULTILINE)


class LogFile:
    """`<path>`, and `<path>.1` with what was before. Appended to by Triton, rotated by the agent."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self._limit = limit_bytes

    def open(self) -> int:
        """A descriptor for Triton's standard output and error; the caller closes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def rotate(self) -> bool:
        """Moves the content aside once it is over the limit. Returns whether it did.

        Copies and truncates, since Triton keeps the file open; a line written between the two is lost.
        """
        if not self.path.exists() or self.path.stat().st_size < self._limit:
            return False
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.truncate(self.path, 0)
        return True

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def last_error(self, since: int) -> str:
        """The last line that reads like an error after byte `since`, else the last line; empty when there is none."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(since, self.size() - 65536))
            tail = file.read()
        errors = [match.group(0) for match in _ERROR_LINE.finditer(tail)]
        lines = errors or [line for line in tail.splitlines() if line.strip()]
        return lines[-1].decode(errors="replace").strip()[:500] if lines else ""

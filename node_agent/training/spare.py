"""A process that has imported what workers need, for the next attempt to begin with: importing torch takes seconds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from node_agent.threads import uninterrupted
from node_agent.training import limits

log = structlog.get_logger()

REST_S = 60.0
"""After one that died by itself there is no other for so long: it may be for a fault of its installation."""
_END_S = 5.0


@dataclass
class Spare:
    """At most one process, for the event loop alone. It ends when this agent does: its standard input ends."""

    clock: Callable[[], float] = time.monotonic
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _rests_until: float = field(default=0.0, init=False)

    def keep(self, command: list[str], environ: Mapping[str, str], nice: int) -> None:
        """Starts one when there is none."""
        if self._child is not None and self._child.poll() is not None:
            log.warning("spare.died", pid=self._child.pid, status=self._child.returncode)
            self._drop()
            self._rests_until = self.clock() + REST_S
        if self._child is not None or self.clock() < self._rests_until:
            return
        try:
            self._child = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.warning("spare.not_started", reason=str(error))
            self._rests_until = self.clock() + REST_S
            return
        limits.stand_back(self._child.pid, nice)

    def take(self, folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
        """The process, as the worker of a folder with these variables; None when there is none."""
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None
        told = json.dumps({"folder": str(folder), "environ": dict(environ)}) + "\n"
        try:
            child.stdin.write(told.encode())  # far less than a pipe holds
            child.stdin.close()
        except OSError:
            child.kill()
            child.wait(_END_S)
            return None
        return child

    async def end(self) -> None:
        """Ends it."""
        child = self._drop()
        if child is not None:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await uninterrupted(child.wait, _END_S)

    def _drop(self) -> subprocess.Popen[bytes] | None:
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()
        return child

"""Keeps one child process running."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import structlog

from meshkit.backoff import Backoff
from meshkit.errors import UnavailableError
from meshkit.process import ProcessId, end_group
from tools.local.board import Board
from tools.local.children import Child
from tools.local.leftovers import end_tritons_of

log = structlog.get_logger()

STEADY_S = 30.0
"""A child that ran this long starts again at once when it dies."""
KEPT_LOGS = 3
_NOT_FOR_CHILDREN = ("ETCD_", "NOTIFY_SOCKET", "WATCHDOG_")


class Keeper:
    """Starts a child in its own process group, again with back-off whenever it dies, and ends it at last."""

    def __init__(self, child: Child, log_file: Path, board: Board, agent_dir: Path | None = None) -> None:
        self.name = child.name
        self._child = child
        self._log_file = log_file
        self._board = board
        self._agent_dir = agent_dir
        self._backoff = Backoff(first_s=0.2, most_s=10.0)
        self._process: ProcessId | None = None

    async def run(self) -> None:
        """Keeps it running until cancelled. Raises UnavailableError when it dies before the mesh was ready."""
        while True:
            began = time.monotonic()
            status = await self._run_once()
            ending = describe_exit(status)
            log.warning("child.ended", name=self.name, ending=ending)
            if not self._board.record.ready:
                raise start_error(self.name, f"it ended with {ending}", self._log_file)
            if time.monotonic() - began > STEADY_S:
                self._backoff.reset()
            self._board.part(self.name, "restarting", f"ended with {ending}")
            await asyncio.sleep(self._backoff.next_delay())

    async def stop(self) -> None:
        """Ends it: SIGTERM, its grace, SIGKILL to its whole group; then the Triton it may have left."""
        if self._process is None:
            return
        if self._process.alive():
            self._board.part(self.name, "stopping")
            await asyncio.to_thread(end_group, self._process, grace_s=self._child.grace_s)
        await self._end_triton()
        self._board.part(self.name, "stopped")

    def kill(self) -> None:
        """Ends it at once, without waiting; `stop` ends its Triton then."""
        if self._process is not None and self._process.alive():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _run_once(self) -> int:
        with self._log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *self._child.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self._log_file.parent,
                env=child_environment(os.environ),
            )
        try:
            self._process = ProcessId.of(process.pid)
        except psutil.NoSuchProcess:  # it died at once
            return await process.wait()
        self._board.part(self.name, "starting", process=self._process)
        log.info("child.started", name=self.name, pid=process.pid)
        return await process.wait()

    async def _end_triton(self) -> None:
        if self._agent_dir is not None:
            await asyncio.to_thread(end_tritons_of, self._agent_dir)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what is meant for this process alone (systemd's) or would change etcd's flags."""
    return {key: value for key, value in environ.items() if not key.startswith(_NOT_FOR_CHILDREN)}


def rotate_log(path: Path, kept: int = KEPT_LOGS) -> None:
    """Moves name.log to name.log.1, name.log.1 to name.log.2 and so on; the oldest goes."""
    for number in range(kept - 1, -1, -1):
        older = path.with_name(f"{path.name}.{number}") if number else path
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))


def last_lines(path: Path, count: int = 15) -> list[str]:
    """The last lines of a log; nothing when there is none."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16 * 1024))
        return file.read().decode(errors="replace").splitlines()[-count:]


def describe_exit(status: int) -> str:
    """'status 1', or 'signal SIGKILL'."""
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def start_error(name: str, what: str, log_file: Path) -> UnavailableError:
    """Why a part did not start, with the last lines of its log."""
    lines = "\n".join(f"  | {line}" for line in last_lines(log_file))
    return UnavailableError(
        f"{name} did not start: {what}" + (f". The end of its log:\n{lines}" if lines else ""),
        hint=f"the whole log is in {log_file}; for what the machine lacks see: aimesh doctor",
        reason="START_FAILED",
    )

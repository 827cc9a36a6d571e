"""Starts Tritons, finds the one that the agent before left, and ends what nobody can use."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from meshkit.failpoints import failpoint
from node_agent.certificates import Shown
from node_agent.settings import AgentSettings
from node_agent.triton import launch, leftover
from node_agent.triton.logfile import LogFile
from node_agent.triton.process import TritonProcess
from node_agent.triton.record import TritonRecord, read_record, write_record

log = structlog.get_logger()

EXIT_MARGIN_S = 5.0
"""What Triton gets beyond its own exit timeout before it is killed."""


@dataclass(frozen=True)
class Started:
    """A Triton and what goes with it."""

    process: TritonProcess
    secret: str
    """What opens its restricted calls."""
    shown: Shown
    """The certificates that it read."""


class Starter:
    """Knows how this agent's Triton is started. One a data directory, under its lock."""

    def __init__(self, settings: AgentSettings, data_dir: Path, output: LogFile) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._output = output

    async def start(self, models: Collection[str] = ()) -> Started:
        """A new one, which loads these models before it opens its ports.

        When this raises AimeshError or OSError, nothing of it is left.
        """
        files = launch.find_files(self._settings.triton)
        backends = await asyncio.to_thread(launch.prepare_backends, files, self._data_dir / "triton" / "backends")
        fingerprint = await asyncio.to_thread(launch.fingerprint, self._settings, files, os.environ)
        (self._data_dir / "repository").mkdir(parents=True, exist_ok=True)
        shown, secret = Shown.on_disk(self._settings.tls), secrets.token_hex(16)
        argv = launch.command(self._settings, files.server, backends, secret) + launch.startup_models(models)
        output = self._output.open()
        try:
            process = TritonProcess.start(argv, launch.environment(os.environ, files.libraries), output)
        finally:
            os.close(output)
        try:
            failpoint("triton.started")
            self._remember(TritonRecord(process.id, fingerprint, secret, shown))
        except BaseException:
            await self.bury(process)
            raise
        return Started(process, secret, shown)

    async def find_left(self) -> Started | None:
        """The Triton of the agent before, when it was started just as this agent would start one.

        Any other is asked to finish its requests and to end; whoever sends it more is refused, and asks another node.
        """
        record = read_record(self._data_dir)
        if record is None:
            return None
        try:
            process = TritonProcess(record.process)
        except ProcessLookupError:
            return None
        files = launch.find_files(self._settings.triton)
        if record.fingerprint == await asyncio.to_thread(launch.fingerprint, self._settings, files, os.environ):
            return Started(process, record.secret, record.shown)
        log.warning("triton.not_adopted", pid=process.pid, reason="it was started with other settings or files")
        process.terminate()
        await process.exits_within(self._settings.drain_s + EXIT_MARGIN_S)
        process.release()
        return None

    async def bury(self, process: TritonProcess) -> None:
        """Ends a Triton at once, its stubs too, and removes what it leaves."""
        await process.kill_group()
        await asyncio.to_thread(leftover.end_leftovers, self._data_dir)

    async def end_leftovers(self) -> None:
        """Ends every Triton of this directory."""
        killed = await asyncio.to_thread(leftover.end_leftovers, self._data_dir)
        if killed:
            log.warning("triton.leftover_killed", pids=killed)

    def _remember(self, record: TritonRecord) -> None:
        try:
            write_record(self._data_dir, record)
        except OSError as error:  # a full disk must not end what needs no disk
            log.warning("triton.not_remembered", reason=str(error), effect="the next agent will start another")

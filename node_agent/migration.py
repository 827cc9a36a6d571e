"""A version's migration: a program among its files that is run on the node before the version gets requests.

Once for each content on each node: its success is remembered by the version's digest. It must bear to be run again, as
it is when the agent dies in the middle.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import DeadlineError, PreconditionError
from meshkit.files import write_atomically
from meshkit.threads import uninterrupted
from meshkit.versions import version_digest

log = structlog.get_logger()

TIMEOUT_S = 300.0
MOST_LOG = 1024 * 1024
"""Bytes of output that are kept."""
_LAST_LINES = 5
_LINE = 4096
_LINGER_S = 1.0
"""How long output is still read of what a program that has ended left behind."""
_BUSY_TRIES = 5


@dataclass(frozen=True)
class Migrations:
    """The migrations of one node: <data_dir>/migrations/."""

    data_dir: Path

    @property
    def _root(self) -> Path:
        return self.data_dir / "migrations"

    def log_of(self, version: registry_pb2.ModelVersion) -> Path:
        """What the last run of a version's migration wrote."""
        return self._root / f"{version.name}-{version.version}.log"

    async def run(self, version: registry_pb2.ModelVersion, program: Path, folder: Path, previous: str) -> None:
        """Runs a version's migration in `folder`, unless this content's has succeeded here before.

        `program` is its file, `previous` the version before, empty for none. Raises DeadlineError when it takes too
        long, PreconditionError when it cannot be started or ends with anything but 0; both with its last lines.
        """
        digest = version_digest(version)
        done = self._root / f"{digest}.done"
        if await asyncio.to_thread(done.exists):
            return
        own = self._root / f"{digest}.run"
        await uninterrupted(_make_runnable, program, own)
        try:
            await self._run(version, own, folder, previous)
        finally:
            await uninterrupted(own.unlink, missing_ok=True)
        await uninterrupted(write_atomically, done, f"{version.name} {version.version}\n".encode())
        log.info("migration.done", model=version.name, version=version.version)

    async def _run(self, version: registry_pb2.ModelVersion, program: Path, folder: Path, previous: str) -> None:
        timeout_s = version.migration.timeout.ToTimedelta().total_seconds() or TIMEOUT_S
        named, output = f"the migration of {version.name}:{version.version}", _Output(self.log_of(version))
        process = await _start(named, program, folder, _environment(version, previous))
        assert process.stdout is not None
        reading = asyncio.create_task(output.take(process.stdout))
        try:
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
        except TimeoutError:
            raise DeadlineError(
                f"{named} did not end within {timeout_s:g} s{output.tail}",
                hint=f"its output: {output.path}",
                reason="MIGRATION_TIMEOUT",
            ) from None
        finally:
            await _end(process, reading)
        if code != 0:
            raise PreconditionError(
                f"{named} ended with {_word(code)}{output.tail}",
                hint=f"its output: {output.path}; it is run again by itself",
                reason="MIGRATION_FAILED",
            )


class _Output:
    """What a program writes: its beginning on disk, its last lines in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def tail(self) -> str:
        """The last lines, for a message."""
        return f", saying: {' | '.join(self._last)}" if self._last else ""

    async def take(self, stream: asyncio.StreamReader) -> None:
        """Until the stream ends. Beyond MOST_LOG bytes it is read and thrown away, so that the program goes on."""
        left, rest = MOST_LOG, b""
        with self._file as file:
            while data := await stream.read(_LINE):
                with suppress(OSError):  # a full disk: the program goes on, and its last lines are known
                    file.write(data[:left])
                left -= min(left, len(data))
                *lines, rest = (rest + data).split(b"\n")
                self._remember(lines)
                rest = rest[-_LINE:]
        self._remember([rest])

    def _remember(self, lines: list[bytes]) -> None:
        texts = (line.decode(errors="replace").strip() for line in lines)
        self._last.extend(text[:200] for text in texts if text)


async def _start(named: str, program: Path, folder: Path, environment: dict[str, str]) -> asyncio.subprocess.Process:
    """The program in a process group of its own. Raises PreconditionError."""
    for attempt in range(_BUSY_TRIES):
        try:
            return await asyncio.create_subprocess_exec(
                program,
                cwd=folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            # A process that was forked while the file was written holds it open until it becomes another program.
            if error.errno != errno.ETXTBSY or attempt + 1 == _BUSY_TRIES:
                raise PreconditionError(
                    f"{named} cannot be started: {error.strerror}",
                    hint="it needs to be a program of this machine, or a script that begins with #!",
                    reason="MIGRATION_FAILED",
                ) from None
            await asyncio.sleep(0.05)
    raise AssertionError("the last try returns or raises")


async def _end(process: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
    """Kills the program's group while it runs, and reads what is left of its output."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its pid is the group's, and is not free until it is waited for
        await process.wait()
    await asyncio.wait({reading}, timeout=_LINGER_S)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


def _make_runnable(program: Path, target: Path) -> None:
    """A copy: the file itself is a blob, which nobody may run or write."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(program, target)
    target.chmod(0o500)


def _environment(version: registry_pb2.ModelVersion, previous: str) -> dict[str, str]:
    """No more than this: the agent's own may hold secrets."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "AIMESH_MODEL": version.name,
        "AIMESH_VERSION": version.version,
        "AIMESH_PREVIOUS_VERSION": previous,
    }


def _word(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

"""The process that workers are forked from: importing torch takes seconds. What it is told: training/zygote.py."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshkit.process import ProcessId
from node_agent.triton.process import TritonProcess as Process

_FIXED = ("LD_", "PYTHON")
"""Variables that are read when a process begins: a fork cannot change them any more."""


class ZygoteLostError(Exception):
    """Nothing can be forked from it any more."""


class Forked:
    """A worker that was forked. It begins with `begin`, so that it can be taken hold of and held back before."""

    def __init__(self, pid: int, zygote: Zygote) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """As subprocess has it, once that is known. It never is when the zygote ended first."""
        self._told = asyncio.Event()
        self._zygote = zygote

    def poll(self) -> int | None:
        """The same: there is nothing to ask."""
        return self.returncode

    def end(self, status: int | None) -> None:
        """Takes how it ended, None when nobody will ever tell."""
        self.returncode = status
        self._told.set()

    async def told_within(self, seconds: float) -> None:
        """Waits so long for how it ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told.wait()

    def begin(self) -> None:
        """Lets it begin; one that this is not said of ends with its zygote."""
        self._zygote.tell({"go": self.pid})


class Zygote:
    """One process, and what is awaited from it."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        """Raises OSError when it cannot be started."""
        child = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        self.process = Process(ProcessId.of(child.pid), child)
        self.lost = ""
        """Why it is of no use any more."""
        self._fixed = fixed(environ)
        self._tells, self._hears = child.stdin, child.stdout
        self._begun = b""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked: deque[asyncio.Future[Forked]] = deque()
        self._forked: dict[int, Forked] = {}
        for end in (self._tells, self._hears):
            os.set_blocking(end.fileno(), False)
        asyncio.get_running_loop().add_reader(self._hears.fileno(), self._listen)

    def suits(self, environ: Mapping[str, str]) -> bool:
        """Whether a process with these variables can be forked from it."""
        return not self.lost and fixed(environ) == self._fixed

    async def fork(self, folder: Path, environ: Mapping[str, str]) -> Forked:
        """A process for the worker of a folder, with these variables. Raises ZygoteLostError."""
        await asyncio.shield(self._ready)
        if self.lost:  # between its word and now
            raise ZygoteLostError(self.lost)
        asked: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self.tell({"folder": str(folder), "environ": dict(environ)})
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                self.tell({"drop": asked.result().pid})
            raise

    def tell(self, what: dict[str, Any]) -> None:
        """Writes one line; a zygote that does not read them is lost."""
        if self.lost:
            return
        line = json.dumps(what).encode() + b"\n"
        try:
            taken = os.write(self._tells.fileno(), line)
        except OSError as error:
            self.give_up(f"it takes no orders: {error.strerror}")
        else:
            if taken < len(line):
                self.give_up("it reads no orders")

    def give_up(self, why: str) -> None:
        """Ends it, and all that is awaited from it. Workers that have begun live on."""
        if self.lost:
            return
        self.lost = why
        asyncio.get_running_loop().remove_reader(self._hears.fileno())
        for end in (self._tells, self._hears):
            with suppress(OSError):
                end.close()
        self.process.kill()
        for forked in self._forked.values():
            forked.end(None)
        awaited: list[asyncio.Future[Any]] = [self._ready, *self._asked]
        for each in awaited:
            _fail(each, why)

    def _listen(self) -> None:
        try:
            read = os.read(self._hears.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not read:
            self.give_up("it ended")
            return
        *lines, self._begun = (self._begun + read).split(b"\n")
        for line in lines:
            if not self.lost:
                self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> None:
        """What one line says."""
        if "ready" in told:
            if told["ready"]:
                self.give_up(told["ready"])
            else:
                self._ready.set_result(None)
        elif "status" in told:
            if (forked := self._forked.pop(told["pid"], None)) is not None:
                forked.end(told["status"])
        else:
            self._answer(told["pid"])

    def _answer(self, pid: int) -> None:
        asked = self._asked.popleft()
        if asked.done():  # nobody waits for it any more
            if pid:
                self.tell({"drop": pid})
        elif pid:
            self._forked[pid] = forked = Forked(pid, self)
            asked.set_result(forked)
        else:
            _fail(asked, "it could not fork")


def _fail(awaited: asyncio.Future[Any], why: str) -> None:
    if not awaited.done():
        awaited.set_exception(ZygoteLostError(why))
        awaited.exception()  # nobody may wait for it


def fixed(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of some variables that a fork cannot change."""
    return {name: value for name, value in environ.items() if name.startswith(_FIXED)}

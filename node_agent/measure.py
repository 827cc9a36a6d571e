"""What a model takes of the machine, measured around its load, and whether it gave it back when it went.

Memory is the proportional set size (PSS in /proc/<pid>/smaps_rollup, see proc(5)): pages that processes share, as a
weights file that two versions map, are divided among them, so that the sum over processes is what the machine holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from meshkit.process import ProcessId
from node_agent.gpus import GpuReader

MIB = 1024**2
TOLERANCE_BYTES = 64 * MIB
"""So much may stay behind: allocators keep some of what was freed for the next."""
TOLERANCE_SHARE = 0.2
"""The same as a share of what the model took."""
_POLL_S = 0.1


@dataclass(frozen=True)
class Footprint:
    """What Triton's processes hold, in bytes."""

    memory_bytes: int = 0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class Measured:
    """What one model took. 0 bytes: not known, as other models came or went at the same moment."""

    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    inside_bytes: int = 0
    """How much of memory_bytes Triton's own process took."""
    load_s: float = 0.0


def taken(
    before: Footprint, after: Footprint, own: Footprint, *, alone: bool, in_processes: bool, load_s: float = 0.0
) -> Measured:
    """What a model took.

    `before` and `after` are of Triton's own process (and the model's GPU), `own` of the model's processes. What Triton
    itself grew by can be told apart from other models' only when none was loaded or unloaded meanwhile.
    """
    grown = max(0, after.memory_bytes - before.memory_bytes) if alone else 0
    memory = own.memory_bytes + grown if in_processes or alone else 0
    on_gpu = max(0, after.gpu_memory_bytes - before.gpu_memory_bytes) if alone else 0
    return Measured(memory, own.gpu_memory_bytes or on_gpu, grown, load_s)


def tolerated(took_bytes: int) -> int:
    """Bytes that may stay behind of so many."""
    return max(TOLERANCE_BYTES, round(TOLERANCE_SHARE * took_bytes))


def resident(pids: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Bytes of memory that these processes hold. One that is gone holds nothing. Blocks for some milliseconds."""
    return sum(_resident(pid, proc) for pid in pids)


def _resident(pid: int, proc: Path) -> int:
    with suppress(OSError):
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with suppress(psutil.Error):  # another user's process, or a kernel without: shared pages are counted in full
        return int(psutil.Process(pid).memory_info().rss)
    return 0


class Meter:
    """Measures the models of one Triton. Which of its loads and unloads overlap is known here alone."""

    def __init__(self, gpus: GpuReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._gpus = gpus
        self._clock = clock
        self._moves = 0
        """Loads and unloads that have begun, ever."""
        self._moving = 0
        """Of those, how many have not ended."""
        self._freeing = 0
        self._freed = asyncio.Event()
        self._freed.set()

    @asynccontextmanager
    async def loading(self, triton_pid: int, gpu: int | None) -> AsyncIterator[Load]:
        """One model is loaded and tested inside."""
        load = Load(self, triton_pid, gpu)
        self._begin()
        load.moves, load.alone = self._moves, self._moving == 1
        try:
            if triton_pid:
                load.before = await asyncio.to_thread(self.footprint, [triton_pid], gpu)
            load.began = self._clock()
            yield load
        finally:
            self._moving -= 1

    @asynccontextmanager
    async def freeing(self) -> AsyncIterator[None]:
        """A model is unloaded inside: no load begins before it has ended (`settled`)."""
        self._begin()
        self._freeing += 1
        self._freed.clear()
        try:
            yield
        finally:
            self._moving -= 1
            self._freeing -= 1
            if not self._freeing:
                self._freed.set()

    async def settled(self, most_s: float) -> None:
        """Waits until no model is on its way out any more, at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._freed.wait()

    async def returned(self, triton_pid: int, gpu: int | None, before: Footprint, took: Measured, most_s: float) -> str:
        """Waits until what a model took is back, at most so many seconds. What is missing then, for people; or empty.

        `before` is what Triton held while the model was loaded. Of the memory only what is inside Triton is looked at:
        the kernel takes back what a process had that has ended.
        """
        if not triton_pid or (not took.inside_bytes and not took.gpu_memory_bytes):
            return ""
        moves, until = self._moves, self._clock() + most_s
        while True:
            now = await asyncio.to_thread(self.footprint, [triton_pid], gpu)
            if moves != self._moves or self._moving > 1:
                return ""  # others came or went: nobody can tell any more whose memory it is
            said = _said(took, before, now)
            if not said or self._clock() >= until:
                return said
            await asyncio.sleep(_POLL_S)

    def footprint(self, pids: Collection[int], gpu: int | None) -> Footprint:
        """What these processes hold of the memory, and all processes of the GPU. Blocks."""
        return Footprint(resident(pids), self._gpus.memory_used(gpu) if gpu is not None else 0)

    def own(self, processes: Collection[ProcessId], gpu: int | None) -> Footprint:
        """What a model's own processes hold. 0 bytes of the GPU where its driver does not tell. Blocks."""
        pids = [process.pid for process in processes if process.alive()]
        on_gpu = self._gpus.by_process() if gpu is not None else {}
        return Footprint(resident(pids), sum(on_gpu.get(pid, 0) for pid in pids))

    def undisturbed(self, load: Load) -> bool:
        """Whether nothing else was loaded or unloaded since a load began."""
        return load.alone and self._moves == load.moves

    def now(self) -> float:
        """Seconds of a clock that only rises."""
        return self._clock()

    def _begin(self) -> None:
        self._moves += 1
        self._moving += 1


class Load:
    """One load that is being measured."""

    def __init__(self, meter: Meter, triton_pid: int, gpu: int | None) -> None:
        self._meter = meter
        self._pid = triton_pid
        self._gpu = gpu
        self.before = Footprint()
        self.began = 0.0
        self.load_s = 0.0
        self.moves = 0
        self.alone = False

    def loaded(self) -> None:
        """Triton has loaded it; what follows is its test."""
        self.load_s = self._meter.now() - self.began

    async def measure(self, processes: Collection[ProcessId]) -> Measured:
        """What the model took so far; `processes` are its own. Nothing is known of a Triton of another machine."""
        if not self._pid:
            return Measured(load_s=self.load_s)
        after = await asyncio.to_thread(self._meter.footprint, [self._pid], self._gpu)
        own = await asyncio.to_thread(self._meter.own, processes, self._gpu)
        alone = self._meter.undisturbed(self)
        return taken(self.before, after, own, alone=alone, in_processes=bool(processes), load_s=self.load_s)


def _said(took: Measured, before: Footprint, now: Footprint) -> str:
    """What of it is not back beyond what is tolerated, for people."""
    kinds = (
        ("memory", took.inside_bytes, before.memory_bytes - now.memory_bytes),
        ("GPU memory", took.gpu_memory_bytes, before.gpu_memory_bytes - now.gpu_memory_bytes),
    )
    return " and ".join(
        f"{(had - max(0, back)) // MIB} of {had // MIB} MiB of {word}"
        for word, had, back in kinds
        if had - max(0, back) > tolerated(had)
    )

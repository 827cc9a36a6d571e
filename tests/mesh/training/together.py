"""A few processes that work together without an agent or a job: one start for many groups of workers."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from aimesh.training.v1 import training_pb2
from tests.mesh.training.workers import _context
from training.data.load import load
from training.run.engine import Engine, engine_for
from training.run.group import TIMEOUT, Group
from training.trainer import Entry, Job

Work = Callable[["Place", Path], Any]
"""What each process does; it can be pickled, and so can what it returns."""


class Place:
    """A process among others."""

    def __init__(self, rank: int, world: int, port: int) -> None:
        self.rank, self.world = rank, world
        self._store = distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
        self._groups = 0

    @contextmanager
    def group(self, size: int) -> Iterator[Group | None]:
        """A group of the first ranks; None in the others. Every process comes by here."""
        self._groups += 1
        if self.rank >= size:
            yield None
        elif size == 1:
            yield Group(0, 1, torch.device("cpu"))
        else:
            store = distributed.PrefixStore(str(self._groups), self._store)  # type: ignore[attr-defined]
            distributed.init_process_group("gloo", store=store, rank=self.rank, world_size=size, timeout=TIMEOUT)
            yield Group(self.rank, size, torch.device("cpu"))
            distributed.destroy_process_group()
        self.meet()

    def meet(self) -> None:
        """Waits for all."""
        self._groups += 1
        key = f"met {self._groups}"
        if self._store.add(key, 1) == self.world:
            self._store.set(f"{key} all", "yes")
        self._store.wait([f"{key} all"])


def together(world: int, work: Work, home: Path) -> list[Any]:
    """What `work` returns in each of so many processes, by rank. Fails with the first trace."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    pipes = [_context.Pipe(duplex=False) for _ in range(world)]
    started = [
        _context.Process(target=_be, args=(work, rank, world, store.port, home, pipe), daemon=True)
        for rank, (_, pipe) in enumerate(pipes)
    ]
    try:
        for process, (_, pipe) in zip(started, pipes, strict=True):
            process.start()
            pipe.close()
        said = [ours.recv() if ours.poll(90) else (False, "nothing came within 90 s") for ours, _ in pipes]
    finally:
        for process in started:
            process.kill()
            process.join()
    wrong = [what for well, what in said if not well]
    assert not wrong, "\n".join(wrong)
    return [what for _, what in said]


def _be(work: Work, rank: int, world: int, port: int, home: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send((True, work(Place(rank, world, port), home)))
    except BaseException:  # noqa: BLE001 - the parent raises it
        pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
    pipe.close()
    os._exit(0)


def engine_of(strategy: training_pb2.Strategy.ValueType, trainer: Any, group: Group) -> Engine:
    """A prepared engine for a trainer's class and the digits."""
    job = Job({}, load(training_pb2.Data(builtin="digits"), Path()), seed=3, batch_size=24)
    entry = Entry(trainer(job), job, trainer.__name__)
    engine = engine_for(strategy)
    engine.prepare(entry, entry.model(), group)
    return engine

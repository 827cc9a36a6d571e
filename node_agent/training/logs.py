"""Reads what workers printed and measured, from their folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aimesh.training.v1 import training_pb2
from node_agent.training.events import parse
from node_agent.training.folder import Folder, numbers_of

PIECE = 256 * 1024
"""Bytes of a log in one message."""
POINTS = 1000
"""Points in one message."""


def tail_text(path: Path, most: int = 16 * 1024) -> str:
    """The last bytes of a log as text; empty when there is none. Blocks on the disk."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


class LogReader:
    """A worker's log, whole lines only, while it grows and is rotated."""

    def __init__(self, path: Path, tail: int) -> None:
        """Begins `tail` lines from the end, or with the oldest that is kept when that is 0."""
        self._path = path
        self._tail = tail
        self._offset = 0
        self._inode = 0

    def first(self) -> Iterator[str]:
        """What is there, in pieces. Blocks on the disk."""
        older = self._path.with_name(f"{self._path.name}.1")
        start = self._start()
        if not self._tail and older.exists():
            yield from _pieces(older)
        self._offset = start
        yield from self.more()

    def more(self, *, all_of_it: bool = False) -> Iterator[str]:
        """What has come since, in pieces; with `all_of_it`, also a line that has no end. Blocks on the disk."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:  # rotated: what came in between was at the end of the old one
                    self._offset = 0
                file.seek(self._offset)
                while data := file.read(PIECE):
                    taken = len(data) if all_of_it or len(data) == PIECE else data.rfind(b"\n") + 1
                    if len(data) == PIECE and (end := data.rfind(b"\n") + 1):
                        taken = end
                    if not taken:
                        return
                    self._offset += taken
                    yield data[:taken].decode(errors="replace")
                    file.seek(self._offset)
        except FileNotFoundError:
            return

    def _start(self) -> int:
        """Where the last lines begin."""
        try:
            with self._path.open("rb") as file:
                return _lines_back(file.fileno(), self._tail) if self._tail else 0
        except FileNotFoundError:
            return 0


def read_points(job: Path) -> Iterator[list[training_pb2.MetricPoint]]:
    """Every point that a rank 0 of this job has measured here, oldest attempt first. Blocks on the disk."""
    found: list[training_pb2.MetricPoint] = []
    for attempt, folder in _rank_zero(job):
        for event in _events(folder.events):
            if event.WhichOneof("body") != "point":
                continue
            event.point.attempt = event.point.attempt or attempt
            found.append(event.point)
            if len(found) == POINTS:
                yield found
                found = []
    if found:
        yield found


def _rank_zero(job: Path) -> list[tuple[int, Folder]]:
    found = [(numbers, Folder(path)) for path in job.iterdir() if (numbers := numbers_of(path.name)) is not None]
    return sorted(((attempt, folder) for (attempt, rank), folder in found if rank == 0), key=lambda each: each[0])


def _events(path: Path) -> Iterator[training_pb2.WorkerEvent]:
    rest = b""
    try:
        with path.open("rb") as file:
            while data := file.read(PIECE):
                events, taken = parse(rest + data)
                rest = (rest + data)[taken:]
                yield from events
    except FileNotFoundError:
        return


def _pieces(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while data := file.read(PIECE):
            yield data.decode(errors="replace")


def _lines_back(descriptor: int, lines: int) -> int:
    """The offset of the last `lines` lines; of fewer when they are more than 4 MiB."""
    size = os.fstat(descriptor).st_size
    most = min(size, 4 * 1024 * 1024)
    data = os.pread(descriptor, most, size - most)
    at = len(data) - (1 if data.endswith(b"\n") else 0)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return size - most
    return size - most + at + 1

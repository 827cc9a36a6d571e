"""Reads what a worker says, line by line, as it is written."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from google.protobuf import json_format

from aimesh.training.v1 import training_pb2

log = structlog.get_logger()

_MOST_READ = 4 * 1024 * 1024
"""Bytes that are taken in at once."""
_POINT = b'"point": {'
"""In a line that is a point, and in no other: within a text its quotes would be escaped."""


def parse(data: bytes, *, last_point: bool = False) -> tuple[list[training_pb2.WorkerEvent], int]:
    """The events of the whole lines in `data`, and how many bytes those are. A line that is none is left out.

    With `last_point`, of all points only the last: a worker may make hundreds of steps a second.
    """
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")
    points = [number for number, line in enumerate(lines) if _POINT in line]
    skipped = set(points[:-1]) if last_point else set()
    found = []
    for number, line in enumerate(lines):
        if number in skipped or not line.strip():
            continue
        try:
            # NaN and Infinity are losses too.
            found.append(json_format.Parse(line, training_pb2.WorkerEvent(), ignore_unknown_fields=True))
        except (json_format.ParseError, UnicodeDecodeError) as error:
            log.warning("task.event_unreadable", line=line[:200].decode(errors="replace"), reason=str(error))
    return found, end


class EventTail:
    """The events of a file from an offset on."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Bytes read so far: always the start of a line."""

    def read(self) -> list[training_pb2.WorkerEvent]:
        """What was written since, of points only the last; some of it when it is much. Blocks on the disk."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size <= self.offset:
                    return []
                file.seek(self.offset)
                data = file.read(_MOST_READ)
        except FileNotFoundError:
            return []
        found, taken = parse(data, last_point=True)
        if not taken and len(data) == _MOST_READ:
            taken = len(data)  # a line without an end is no event
        self.offset += taken
        return found

"""What the supervisor knows about its mesh, written to mesh.json at every change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meshkit.process import ProcessId
from tools.local.record import MeshRecord, Part, update_part, write_record


class Board:
    """The mesh's record as it changes. `listener` hears every change; used from one thread."""

    def __init__(self, record: MeshRecord, listener: Callable[[MeshRecord], None]) -> None:
        self._record = record
        self._listener = listener
        self._publish()

    @property
    def record(self) -> MeshRecord:
        """As it is now."""
        return self._record

    def part(self, name: str, state: str, message: str = "", process: ProcessId | None = None) -> None:
        """Records how a part is, and its process when a new one was started."""
        part = Part(state, message)
        if process is None and self._record.parts.get(name) == part:
            return
        self._record = update_part(self._record, name, part, process)
        self._publish()

    def ready(self) -> None:
        """Records that the whole mesh answers."""
        self._record = replace(self._record, ready=True)
        self._publish()

    def stopped(self) -> None:
        """Records that nothing runs any more."""
        self._record = self._record.stopped()
        self._publish()

    def _publish(self) -> None:
        write_record(self._record)
        self._listener(self._record)

"""Shows a mesh's parts while they start or stop: live on a terminal, one line a change in a pipe."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tools.cli.output import progress_console
from tools.local.record import MeshRecord, Part

STYLES = {"ready": "green", "stopped": "dim", "failed": "bold red", "restarting": "yellow", "waiting": "dim"}
_MARKS = {"ready": "✓", "stopped": "·", "failed": "✗", "waiting": "·"}


class PartsView:
    """A context in which `show(record)` brings the picture up to date.

    With `goes_on`, for a mesh in the foreground, the picture stands once the mesh is ready and what comes later comes
    as lines.
    """

    def __init__(self, *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self._console = progress_console()
        self._live = Live(console=self._console, refresh_per_second=10) if self._console.is_terminal else None
        self._spinner = Spinner("dots")
        self._seen: dict[str, Part] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, record: MeshRecord) -> None:
        """Shows the record's parts. A record without parts changes nothing."""
        if not record.parts:
            return
        if self._live:
            self._live.update(self._table(record))
            if record.ready and self._goes_on:
                self._live.stop()
                self._live, self._seen = None, dict(record.parts)
            return
        for name, part in record.parts.items():
            if self._seen.get(name) != part and part.state != "waiting":
                self._console.print(f"{name:<14} {part.state}{'  ' + part.message if part.message else ''}")
        self._seen = dict(record.parts)

    def _table(self, record: MeshRecord) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, part in record.parts.items():
            mark = Text(_MARKS[part.state], STYLES[part.state]) if part.state in _MARKS else self._spinner
            state = Text(part.state, STYLES.get(part.state, "cyan"))
            table.add_row(mark, name, state, Text(part.message, "dim"))
        return table

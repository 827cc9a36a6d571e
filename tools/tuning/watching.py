"""A search as it goes on: a bar on a terminal, a line for each trial in a pipe; always on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.cli.output import progress_console
from tools.training.view import figure
from tools.tuning.course import Outcome
from tools.tuning.search import Going

_MOST_SHOWN = 6


class Watching:
    """A context in which `show(going)` brings the picture up to date."""

    def __init__(
        self, study: str, metric: str, direction: str, ended: int, most: int, best: float | None = None
    ) -> None:
        """`ended` trials were there before, `best` is what they came to; with `most` the study has all."""
        self.metric = metric
        self.better = max if direction == "maximize" else min
        self._before = ended
        self._best = [] if best is None else [best]
        self._told: set[int] = set()
        self._console = progress_console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[far]}"),
        )
        self._progress = Progress(*columns, console=self._console) if self._console.is_terminal else None
        if self._progress:
            self._task = self._progress.add_task(study, total=max(most, ended), completed=ended, far="")

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, going: Going) -> None:
        """What has come since the last time."""
        for number in sorted(set(going.ended) - self._told):
            self._told.add(number)
            self._console.print(said(number, self.metric, going.ended[number]), soft_wrap=True)
        if self._progress:
            done = self._before + len(going.ended)
            self._progress.update(self._task, completed=done, far=self._far(going))

    def _far(self, going: Going) -> str:
        values = [*self._best, *(found.value for found in going.ended.values() if found.value is not None)]
        best = f"best {figure(self.better(values))}  " if values else ""
        running = sorted(going.running.items())
        more = f" and {len(running) - _MOST_SHOWN} more" if len(running) > _MOST_SHOWN else ""
        return best + ", ".join(f"#{number} {far}" for number, far in running[:_MOST_SHOWN]) + more


def said(number: int, metric: str, found: Outcome) -> str:
    """One line about a trial that has ended."""
    if found.state == "complete":
        return f"trial {number}: {metric} {figure(found.value)}"
    return f"trial {number}: pruned" if found.state == "pruned" else f"trial {number}: failed: {found.error}"

"""How measurements of two versions look on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from aimesh.rollout.v1 import rollout_pb2

_WIDE = 110
"""Columns of a terminal from which the tests are named."""
_SURE = 0.05
"""p-values below are shown with a colour: what the verdict takes for sure depends on how many there are."""
_MIB = 2**20
_SHARES = ("error_rate", "sample_ratio")
_FORMS: Mapping[str, Callable[[float], str]] = {
    "ms": lambda value: f"{value:.4g} ms",
    "bytes": lambda value: f"{value / _MIB:.4g} MiB",
    "rps": lambda value: f"{value:.3g}/s",
    "s": lambda value: f"{value:.3g}/s",
}
"""By the end of the metric's name."""


def measured(comparisons: Sequence[rollout_pb2.Comparison]) -> Iterator[RenderableType]:
    """A table of what was measured of both versions; nothing when nothing was."""
    if comparisons:
        yield _Measured(comparisons)


class _Measured:
    """Names the tests where there is room."""

    def __init__(self, comparisons: Sequence[rollout_pb2.Comparison]) -> None:
        self._comparisons = comparisons

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE
        table = Table(box=None, pad_edge=False)
        titles = ("METRIC", "BEFORE", "NOW", "SEEN", "WORSE BY", "P WORSE", "P NO WORSE")
        for title in titles:
            table.add_column(title, justify="left" if title == "METRIC" else "right", no_wrap=True)
        if wide:
            table.add_column("TEST")
        version = ""
        for each in self._comparisons:
            if each.version != version:  # an experiment's arm: a line of its own, and not a prefix of each metric
                version = each.version
                table.add_row(Text(version, style="bold"))
            table.add_row(*_row(each), *([each.test] if wide else []))
        yield table


def _row(each: rollout_pb2.Comparison) -> tuple[str | Text, ...]:
    tested = bool(each.test)
    return (
        each.metric,
        value(each.metric, each.before) if each.HasField("before") else "",
        value(each.metric, each.now) if each.HasField("now") else "",
        f"{each.now_count:,}" if each.now_count else "",
        _effect(each) if tested else "",
        _p(each.p_value, "red") if tested else "",
        _p(each.no_worse_p_value, "green") if tested and each.no_worse_p_value else "",
    )


def value(metric: str, amount: float) -> str:
    """With the metric's unit: 0.5 %, 12.3 ms, 40 MiB."""
    if metric in _SHARES:
        return f"{100 * amount:.3g} %"
    form = _FORMS.get(metric.rpartition("_")[2])
    return form(amount) if form is not None else f"{amount:.4g}"


def _effect(each: rollout_pb2.Comparison) -> str:
    """In points of what is a share itself, else relative."""
    if each.metric in _SHARES:
        return f"{100 * each.effect:+.3g} pts"
    relative = each.metric.startswith("latency") or each.metric.endswith("bytes")
    return f"{100 * each.effect:+.3g} %" if relative else f"{each.effect:+.3g}"


def _p(p: float, colour: str) -> Text:
    return Text(f"{p:.2g}" if p >= 1e-4 else "<0.0001", style=colour if p < _SURE else "")

"""A report as a document: the sentence, the tables, how latencies are spread, and each metric with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages

from aimesh.experiment.v1 import experiment_pb2
from aimesh.experiment.v1.experiment_pb2 import Experiment, Report, Row, Side, Value
from tools.cli.plain import enum_name
from tools.reports.pages import INK, PALE, Pages
from tools.reports.wording import HEADS, cells, facts, mark, method, sections

BASELINE, CANDIDATE = "#4878a8", "#d9792b"
_COLOURS = {"better": "#1b7f3b", "worse": "#b3261e", "": INK}
_EDGES = (0.0, 0.45, 0.72, 0.83, 0.92, 1.0)
_A_LINE = 3
"""Plots of metrics beside each other."""
_OCTAVE = 8
"""Latency buckets in a doubling."""


def write_pdf(path: Path, report: Report, experiment: Experiment | None = None) -> None:
    """Writes the document; with an experiment, also what was decided and why. Raises OSError."""
    pages = Pages(f"aimesh: {_name(report.candidate)} beside {_name(report.baseline)}")
    _front(pages, report, experiment)
    _tables(pages, report)
    _latencies(pages, report)
    _metrics(pages, report)
    _reading(pages, report)
    if experiment is not None:
        _history(pages, experiment)
    with PdfPages(path, metadata={"Title": _title(report, experiment), "Creator": "aimesh"}) as document:
        for figure in pages.figures:
            document.savefig(figure)


def _front(pages: Pages, report: Report, experiment: Experiment | None) -> None:
    pages.paragraph(_title(report, experiment), 17, bold=True, after=2)
    if experiment is not None:
        state = enum_name(experiment_pb2.ExperimentState.DESCRIPTOR, experiment.state).capitalize()
        pages.paragraph(f"{state}: {experiment.reason}", 10, color=PALE, after=6)
    worse = any(mark(row) == "worse" for row in report.rows)
    better = any(mark(row) == "better" for row in report.rows)
    color = _COLOURS["worse"] if worse else _COLOURS["better"] if better else INK
    pages.paragraph(report.summary, 11, bold=True, color=color, after=8)
    for line in facts(report):
        pages.paragraph(line, 8, color=PALE, after=1)
    pages.space(8)


def _tables(pages: Pages, report: Report) -> None:
    for title, rows in sections(report):
        pages.need(60)
        pages.paragraph(title, 11, bold=True, after=0)
        pages.row(HEADS, _EDGES, bold=True, rule=True)
        for row in rows:
            texts = cells(row)
            pages.row(texts, _EDGES, colors=[INK] * (len(texts) - 1) + [_COLOURS[texts[-1]]])
        pages.space(10)


def _latencies(pages: Pages, report: Report) -> None:
    """How many requests took longer than a time, both axes in powers: the tail shows."""
    sides = [(report.baseline, BASELINE), (report.candidate, CANDIDATE)]
    known = [(side, color) for side, color in sides if side.latency_buckets]
    if not known:
        return
    pages.need(265)
    pages.paragraph("How long requests took", 11, bold=True, after=0)
    spread = pages.plot(230, 0.0, 0.5, last=False)
    tail = pages.plot(230, 0.5, 1.0)
    for side, color in known:
        times, shares, longer = _spread(side.latency_buckets)
        spread.fill_between(times, shares, step="post", color=color, alpha=0.25)
        spread.step(times, shares, where="post", color=color, linewidth=1.2, label=_name(side))
        tail.step(times, longer, where="post", color=color, linewidth=1.2, label=_name(side))
    for axes, title in ((spread, "share of requests"), (tail, "share that took longer")):
        axes.set_xscale("log")
        axes.set_title(title, fontsize=8, color=INK, loc="left")
        axes.set_xlabel("ms", fontsize=7, labelpad=1)
        axes.xaxis.set_major_formatter(_plain)
        axes.xaxis.set_minor_formatter(_sparse)
        axes.tick_params(axis="x", which="minor", labelsize=6)
    tail.set_yscale("log")
    spread.set_ylim(bottom=0)
    tail.legend(fontsize=7, frameon=False, loc="best")


def _spread(buckets: Mapping[int, int]) -> tuple[list[float], list[float], list[float | None]]:
    """(a bucket's beginning in ms, its share, the share above its beginning), with an empty bucket at the end."""
    places = range(min(buckets), max(buckets) + 2)
    total = sum(buckets.values())
    counts = [buckets.get(place, 0) for place in places]
    below = [0, *accumulate(counts)][:-1]
    longer = [(total - count) / total or None for count in below]
    return [2 ** (place / _OCTAVE) / 1000 for place in places], [count / total for count in counts], longer


def _metrics(pages: Pages, report: Report) -> None:
    rows = [row for row in report.rows if row.HasField("baseline") and row.HasField("candidate")]
    for start in range(0, len(rows), _A_LINE):
        line = rows[start : start + _A_LINE]
        pages.need(155 if start == 0 else 130)
        if start == 0:
            pages.paragraph("Each metric with its interval", 11, bold=True, after=0)
        for place, row in enumerate(line):
            share = 1 / _A_LINE
            axes = pages.plot(128, place * share, (place + 1) * share, last=place == len(line) - 1)
            _bars(axes, row)


def _bars(axes: object, row: Row) -> None:
    scale, unit = (2**20, "MiB") if row.unit == "bytes" else (1, row.unit)
    for place, (value, color) in enumerate(((row.baseline, BASELINE), (row.candidate, CANDIDATE))):
        axes.bar(place, value.value / scale, width=0.6, color=color, alpha=0.85)  # type: ignore[attr-defined]
        if value.HasField("low"):
            below, above = (each / scale for each in _reach(value))
            axes.errorbar(place, value.value / scale, [[below], [above]], color=INK, capsize=4, linewidth=1)  # type: ignore[attr-defined]
    title = f"{row.metric}{f' ({unit})' if unit not in ('', 'share') else ''}"
    axes.set_title(title, fontsize=8, loc="left", color=_COLOURS[mark(row)])  # type: ignore[attr-defined]
    axes.set_xticks([0, 1], ["baseline", "candidate"], fontsize=7)  # type: ignore[attr-defined]
    axes.set_xlim(-0.6, 1.6)  # type: ignore[attr-defined]
    axes.yaxis.set_major_formatter(_plain)  # type: ignore[attr-defined]
    axes.margins(y=0.12)  # type: ignore[attr-defined]
    if row.baseline.value == row.candidate.value == 0:
        axes.set_ylim(0, 1)  # type: ignore[attr-defined]


def _reach(value: Value) -> Iterator[float]:
    """How far the interval goes down and up; the value itself may lie at its edge."""
    yield max(0.0, value.value - value.low)
    yield max(0.0, value.high - value.value)


def _reading(pages: Pages, report: Report) -> None:
    pages.space(6)
    pages.need(60)
    pages.paragraph("How to read this", 11, bold=True, after=2)
    for line in method(report):
        pages.paragraph(line, 8, color=PALE, after=2)


def _history(pages: Pages, experiment: Experiment) -> None:
    pages.space(6)
    pages.need(60)
    pages.paragraph("What happened", 11, bold=True, after=2)
    before = ""
    for event in experiment.events:
        state = enum_name(experiment_pb2.ExperimentState.DESCRIPTOR, event.state).lower()
        at = event.at.ToJsonString()[:19].replace("T", " ")
        why = "the same" if event.reason == before else event.reason
        pages.paragraph(f"{at}  {state} by {event.by}: {why}", 8, after=2)
        before = event.reason
    pages.paragraph(f"configuration {experiment.hash}", 7, color=PALE)


def _title(report: Report, experiment: Experiment | None) -> str:
    if experiment is not None:
        return f"Experiment {experiment.spec.name}"
    return f"{_name(report.candidate)} beside {_name(report.baseline)}"


def _name(side: Side) -> str:
    return f"{side.model}:{side.version}"


def _plain(value: float, _place: object) -> str:
    return f"{value:g}"


def _sparse(value: float, _place: object) -> str:
    """Of the ticks between powers of ten only 2 and 5: the others would touch."""
    digits: Sequence[str] = f"{value:e}"
    return f"{value:g}" if digits[0] in "25" else ""

"""How a report's numbers are said, the same on the terminal and on paper. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from aimesh.experiment.v1 import experiment_pb2
from aimesh.experiment.v1.experiment_pb2 import Report, Row, Value
from coordinator.experiments.summary import differs, improves, number

SECTIONS = {
    experiment_pb2.SECTION_FUNCTIONAL: "What is answered",
    experiment_pb2.SECTION_NON_FUNCTIONAL: "How",
    experiment_pb2.SECTION_ECONOMIC: "What it costs",
}
HEADS = ("metric", "baseline", "candidate", "change", "p (Holm)", "")
Mark = Literal["better", "worse", ""]


def sections(report: Report) -> Iterator[tuple[str, Sequence[Row]]]:
    """The rows under their headings; headings without rows are left out."""
    for section, title in SECTIONS.items():
        rows = [row for row in report.rows if row.section == section]
        if rows:
            yield title, rows


def cells(row: Row) -> tuple[str, str, str, str, str, Mark]:
    """One line of a table."""
    return (
        row.metric,
        shown(row.baseline if row.HasField("baseline") else None, row.unit),
        shown(row.candidate if row.HasField("candidate") else None, row.unit),
        change(row),
        chance(row),
        mark(row),
    )


def shown(value: Value | None, unit: str) -> str:
    """A value with its interval: "0.750 (0.667 - 0.825)"."""
    if value is None:
        return "-"
    text = number(value.value, unit)
    if not value.HasField("low") or value.low == value.high:
        return text
    low, high = (number(each, unit).removesuffix(f" {unit}").removesuffix(" MiB") for each in (value.low, value.high))
    return f"{text} ({low} - {high})"


def change(row: Row) -> str:
    """The difference, in points of what is a share, else in percent."""
    if not (row.HasField("baseline") and row.HasField("candidate")):
        return ""
    old, new = row.baseline.value, row.candidate.value
    if row.unit in ("share", ""):
        return f"{new - old:+.3f}" if new != old else "0"
    return f"{100 * (new / old - 1):+.1f} %" if old else ""


def chance(row: Row) -> str:
    """The corrected p-value; empty where nothing was tested."""
    if not row.test:
        return ""
    return f"{row.adjusted_p_value:.3f}" if row.adjusted_p_value >= 0.001 else "< 0.001"


def mark(row: Row) -> Mark:
    """Which way it differs, when it does so in a way that matters."""
    if not differs(row):
        return ""
    return "better" if improves(row) else "worse"


def facts(report: Report) -> list[str]:
    """What was done, a line each."""
    lines = [
        f"{report.questions} questions, each put {report.repeat} times to each version; "
        f"set {report.dataset[:12]}, {report.at.ToJsonString()[:16].replace('T', ' ')} UTC"
    ]
    if report.parameters:
        lines.append("parameters: " + ", ".join(f"{key}={report.parameters[key]}" for key in sorted(report.parameters)))
    for name, side in (("baseline", report.baseline), ("candidate", report.candidate)):
        errors = ", ".join(f"{count} {kind}" for kind, count in sorted(side.errors.items())) or "none failed"
        lines.append(
            f"{name} {side.model}:{side.version} ({side.digest[:12]}): {side.requests} requests, {errors}; "
            f"on {', '.join(side.nodes)}"
        )
    return lines


def method(report: Report) -> list[str]:
    """How to read it."""
    tests = sorted({row.test for row in report.rows if row.test})
    return [
        "In brackets: the interval that the true value is in, but for a chance of 5 % (bootstrap of the questions; for "
        "rates, the slowest and the fastest round).",
        *(f"Tested by {test}." for test in tests),
        "p-values are two-sided and raised for the number of tests (Holm). Better and worse are said of differences "
        "with p of at most 0.05 that are as large as rollouts are taken back for.",
        *(f"Note: {note}." for note in report.notes),
    ]

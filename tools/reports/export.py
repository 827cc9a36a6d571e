"""A report for programs: CSV, one line a metric."""

from __future__ import annotations

import csv
import io

from aimesh.experiment.v1 import experiment_pb2
from aimesh.experiment.v1.experiment_pb2 import Report, Row, Value
from tools.cli.plain import enum_name
from tools.reports.wording import mark

COLUMNS = (
    "metric",
    "section",
    "unit",
    "better",
    "baseline",
    "baseline_low",
    "baseline_high",
    "candidate",
    "candidate_low",
    "candidate_high",
    "p_value",
    "adjusted_p_value",
    "effect",
    "test",
    "verdict",
)


def to_csv(report: Report) -> str:
    """Lines with the columns above; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_line(row) for row in report.rows)
    return text.getvalue()


def _line(row: Row) -> list[str]:
    tested = [repr(row.p_value), repr(row.adjusted_p_value), repr(row.effect), row.test] if row.test else [""] * 4
    return [
        row.metric,
        enum_name(experiment_pb2.Section.DESCRIPTOR, row.section).lower(),
        row.unit,
        enum_name(experiment_pb2.Better.DESCRIPTOR, row.better).lower().removeprefix("unspecified"),
        *_value(row.baseline if row.HasField("baseline") else None),
        *_value(row.candidate if row.HasField("candidate") else None),
        *tested,
        mark(row),
    ]


def _value(value: Value | None) -> list[str]:
    if value is None:
        return ["", "", ""]
    interval = [repr(value.low), repr(value.high)] if value.HasField("low") else ["", ""]
    return [repr(value.value), *interval]

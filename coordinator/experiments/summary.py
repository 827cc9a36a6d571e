"""What a report comes to, in one sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aimesh.experiment.v1 import experiment_pb2
from aimesh.experiment.v1.experiment_pb2 import BETTER_HIGHER, BETTER_UNSPECIFIED, Row
from coordinator.rollout.margins import LATENCIES, matters

SURE = 0.05
"""Largest p-value, after correction, of a difference that is one."""
_SHOWN = 4


def summary(report: experiment_pb2.Report) -> str:
    """ "m:2.0.0 is worse than m:1.0.0 in accuracy (0.61, was 0.93); no difference that matters is shown in f1." """
    differ = [row for row in report.rows if differs(row)]
    better = [row for row in differ if improves(row)]
    worse = [row for row in differ if not improves(row)]
    new, old = (f"{side.model}:{side.version}" for side in (report.candidate, report.baseline))
    if not differ:
        return f"No difference that matters between {new} and {old} is shown."
    parts = [f"{word} than {old} in {_named(rows)}" for word, rows in (("worse", worse), ("better", better)) if rows]
    rest = [row.metric for row in report.rows if row.test and row not in differ]
    also = f"; no difference that matters is shown in {_listed(rest)}" if rest else ""
    return f"{new} is {' and '.join(parts)}{also}."


def differs(row: Row) -> bool:
    """Whether chance does not explain the difference, one of the two is the better, and it is as large as matters."""
    if not row.test or row.better == BETTER_UNSPECIFIED or row.adjusted_p_value > SURE:
        return False
    change = row.candidate.value - row.baseline.value
    if row.metric in LATENCIES:
        change /= row.baseline.value or 1.0
    return abs(change) >= matters(row.metric)


def improves(row: Row) -> bool:
    """Whether the candidate is on the good side."""
    return (row.candidate.value > row.baseline.value) == (row.better == BETTER_HIGHER)


def number(value: float, unit: str) -> str:
    """A value for people."""
    if unit == "bytes":
        return f"{value / 2**20:.4g} MiB"
    if unit in ("share", ""):
        return f"{value:.3f}"
    shown = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return shown if unit == "cost" else f"{shown} {unit}"


def _named(rows: Sequence[Row]) -> str:
    return _listed(
        [
            f"{row.metric} ({number(row.candidate.value, row.unit)}, was {number(row.baseline.value, row.unit)})"
            for row in rows
        ]
    )


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]

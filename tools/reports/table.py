"""A report on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.experiment.v1.experiment_pb2 import Report
from tools.reports.wording import HEADS, cells, facts, sections

_COLOURS = {"better": "green", "worse": "bold red", "": ""}


def report_view(report: Report) -> RenderableType:
    """The sentence, the numbers, what was done."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, head in enumerate(HEADS):
        table.add_column(head, justify="left" if place in (0, len(HEADS) - 1) else "right", no_wrap=place == 0)
    for title, rows in sections(report):
        table.add_row(Text(title, style="bold"))
        for row in rows:
            *plain, mark = cells(row)
            table.add_row(*plain, Text(mark, style=_COLOURS[mark]))
    notes = [*facts(report), *report.notes]
    return Group(Text(report.summary, style="bold"), "", table, "", *(Text(line, style="dim") for line in notes))

"""Reports read the same wherever they are read."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pypdfium2
import pytest
from rich.console import Console

from aimesh.experiment.v1 import experiment_pb2
from coordinator.experiments import lifecycle
from coordinator.order import Order
from tests.unit.experiments.support import spec, taken
from tests.unit.experiments.test_compare import EXPECTED, WRONG, report
from tools.cli.experiments_view import listed, quarantine_table, shown
from tools.reports.export import COLUMNS, to_csv
from tools.reports.pages import MARGIN, WIDTH
from tools.reports.pdf import write_pdf
from tools.reports.table import report_view


@pytest.fixture(scope="module")
def worse() -> experiment_pb2.Report:
    old = taken("1.0.0", EXPECTED, price=2.0, parts=8, memory=1e9)
    found = report(old, taken("2.0.0", WRONG, milliseconds=30, price=2.0, parts=16, memory=2e9, failing=30))
    found.questions, found.repeat, found.dataset = 120, 3, "d" * 64
    found.parameters["temperature"] = "0.5"
    return found


def experiment(reason: str = "because of $5 and [/b]") -> experiment_pb2.Experiment:
    made = experiment_pb2.Experiment(spec=spec(), hash="a" * 64)
    for state in (lifecycle.CREATED, lifecycle.EXECUTING, lifecycle.EVALUATED, lifecycle.QUARANTINING):
        made = lifecycle.moved(made, state, Order("leader", reason, 10**18))
    return made


def printed(what: object) -> str:
    console = Console(width=160, file=io.StringIO(), markup=False)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_terminal_says_everything(worse: experiment_pb2.Report) -> None:
    text = printed(report_view(worse))
    assert all(row.metric in text for row in worse.rows)
    for said in ("What is answered", "worse", "90 INTERNAL", "temperature=0.5", "120 questions, each put 3 times"):
        assert said in text
    assert "because of $5 and [/b]" in printed(shown(experiment()))
    assert printed(shown(experiment())).count("the same") == 3
    assert "QUARANTINING" in printed(listed([experiment()]))
    held = experiment_pb2.Quarantine(hash="a" * 64, model="m", version="2.0.0", parameters={"t": "1"}, reason="bad")
    assert "stands" in printed(quarantine_table([held]))


def test_csv_has_a_line_a_metric(worse: experiment_pb2.Report) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(worse))))
    assert [line["metric"] for line in lines] == [row.metric for row in worse.rows]
    by_metric = {line["metric"]: line for line in lines}
    accuracy = by_metric["accuracy"]
    assert tuple(accuracy) == COLUMNS
    assert (accuracy["section"], accuracy["better"], accuracy["verdict"]) == ("functional", "higher", "worse")
    assert float(accuracy["candidate_low"]) < float(accuracy["candidate"]) < float(accuracy["candidate_high"])
    assert (by_metric["overlap"]["baseline"], by_metric["overlap"]["p_value"]) == ("", "")


def test_a_document_has_all_of_it_and_nothing_leaves_the_page(worse: experiment_pb2.Report, tmp_path: Path) -> None:
    write_pdf(tmp_path / "report.pdf", worse, experiment("a_word_that_does_not_end" * 20))
    with pypdfium2.PdfDocument(tmp_path / "report.pdf") as document:
        text = ""
        for page in document:
            words = page.get_textpage()
            text += words.get_text_range()
            boxes = [words.get_rect(number) for number in range(words.count_rects())]
            assert all(left >= MARGIN - 20 and right <= WIDTH - MARGIN + 1 for left, _, right, _ in boxes)
            words.close()
            page.close()
    for said in (
        "Experiment e1",
        "m:2.0.0 is worse than m:1.0.0",
        "cost_per_request",
        "How long requests took",
        "Holm",
    ):
        assert said in text


def test_a_version_that_answered_nothing_has_a_document_too(tmp_path: Path) -> None:
    nothing = report(taken("1.0.0", EXPECTED, failing=120), taken("2.0.0", EXPECTED, failing=120))
    write_pdf(tmp_path / "report.pdf", nothing)
    assert (tmp_path / "report.pdf").stat().st_size > 10_000

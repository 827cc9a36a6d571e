"""A simulation for people: progress while it runs, tables at last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tools.cli.output import progress_console
from tools.simulate.plan import Plan
from tools.simulate.report import PARTS, Report
from tools.simulate.statistics import Spread

WORDS = {
    "start": "coordinators answer",
    "join": "nodes have joined",
    "deploy": "replicas are READY",
    "clients": "clients have their endpoints",
    "idle": "seconds of heartbeats only",
    "churn": "seconds of change",
    "everyone": "changes that concern every client",
}
KINDS = {
    "all": "any change",
    "scaled up": "deployment + 1 replica",
    "scaled down": "deployment - 1 replica",
    "left": "node left",
    "killed": "node killed",
    "ready": "replica READY",
    "everyone": "change for all clients",
}


class PartsView:
    """A context that gives a function: `tell(part, done, total)` shows progress on standard error, as bars; in a pipe
    each part is a line once it is done."""

    def __init__(self, plan: Plan) -> None:
        self._console = progress_console()
        self._bars: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._began = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        terminal = self._console.is_terminal
        self._progress = Progress(*columns, TimeElapsedColumn(), console=self._console, disable=not terminal)
        self._console.print(_title(plan), soft_wrap=True)

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._progress.start()
        return self._tell

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _tell(self, part: str, done: int, total: int) -> None:
        """A part is this far."""
        if part not in self._bars:
            self._bars[part] = self._progress.add_task(WORDS[part], total=total)
        self._progress.update(self._bars[part], completed=done)
        if done >= total and part not in self._finished:
            self._finished.add(part)
            if self._progress.disable:
                self._console.print(f"{time.monotonic() - self._began:6.1f} s  {total} {WORDS[part]}")


def plain(report: Report) -> dict[str, Any]:
    """The report as plain values, for JSON."""
    bars = [{"bar": bar, "measured": measured, "holds": holds} for bar, measured, holds in report.bars]
    return {**asdict(report), "bars": bars, "problems": report.problems}


def tables(reports: Sequence[Report]) -> Iterator[Table | Text]:
    """The figures, one column a run; then what each coordinator of the last run took, the bars and the problems."""
    yield _figures(reports)
    yield _coordinators(reports[-1])
    yield from _verdict(reports[-1])
    for report in reports:
        yield from (Text(f"✗ {report.plan.nodes} nodes: {problem}", "bold red") for problem in report.problems)


def _title(plan: Plan) -> str:
    return (
        f"{plan.nodes} nodes, {plan.models} models of {plan.replicas} replicas, {plan.clients} clients, "
        f"{plan.coordinators} coordinators, etcd of {plan.etcd}; {plan.churn:g} changes/s for {plan.duration_s:g} s"
    )


def _figures(reports: Sequence[Report]) -> Table:
    table = Table(
        title=f"{reports[0].plan.coordinators} coordinators, etcd of {reports[0].plan.etcd}", title_justify="left"
    )
    table.add_column("")
    for report in reports:
        table.add_column(f"{report.plan.nodes} nodes", justify="right")
    for label, values in _rows(reports):
        table.add_row(label, *values)
    return table


def _rows(reports: Sequence[Report]) -> Iterator[tuple[str, list[str]]]:
    def row(label: str, value: Any) -> tuple[str, list[str]]:
        return label, [value(report) for report in reports]

    yield row("models / clients", lambda r: f"{r.plan.models} / {r.plan.clients}")
    yield row("all nodes joined", lambda r: f"{r.joined_s:.2f} s")
    yield row("one join, p50 / p99", lambda r: _pair(r.join))
    yield row("all replicas READY", lambda r: f"{r.deploy_s:.2f} s")
    yield row("all clients configured", lambda r: f"{r.clients_s:.2f} s")
    for kind, words in KINDS.items():
        yield row(
            f"{words}, p50 / p99 (count)", lambda r, kind=kind: _pair(r.propagation.get(kind, Spread()), count=True)
        )
    yield row("call of ApplyDeployment, p50 / p99", lambda r: _pair(r.api))
    for name in PARTS:
        yield row(f"etcd writes/s, {name}", lambda r, name=name: f"{r.parts[name].etcd_writes_per_s:.1f}")
    yield row("heartbeats while idle", lambda r: str(r.idle_heartbeats))
    yield row("etcd revisions while idle", lambda r: str(r.parts["idle"].etcd_revisions))
    for name in PARTS:
        yield row(f"CPU a coordinator, {name} (% of a core)", lambda r, name=name: _mean_cpu(r, name, "coordinator"))
    for who in ("etcd", "simulator"):
        yield row(
            f"CPU {who}, idle / churn (%)", lambda r, who=who: f"{_cpu(r, 'idle', who)} / {_cpu(r, 'churn', who)}"
        )
    yield row("CPU of other programs, idle / churn (%)", lambda r: " / ".join(_others(r, p) for p in ("idle", "churn")))
    yield row("largest coordinator", lambda r: _megabytes(r.largest_coordinator_bytes))
    yield row("largest etcd / simulator", lambda r: f"{_largest(r, 'etcd')} / {_largest(r, 'simulator')}")
    yield row("load average before / after", lambda r: f"{r.machine.load_before:.1f} / {r.machine.load_after:.1f}")


def _coordinators(report: Report) -> Table:
    table = Table(title=f"Each coordinator at {report.plan.nodes} nodes", title_justify="left")
    table.add_column("")
    for heading in (*(f"CPU {name}" for name in PARTS), "memory"):
        table.add_column(heading, justify="right")
    for name in sorted(report.resident_bytes, key=lambda name: (len(name), name)):
        if name.startswith("coordinator"):
            cpu = [f"{report.parts[part].cpu_cores[name]:.0%}" for part in PARTS]
            table.add_row(name, *cpu, _megabytes(report.resident_bytes[name]))
    return table


def _verdict(report: Report) -> Iterator[Text]:
    yield Text(
        f"etcd, coordinators, agents and clients share {report.machine.cores} cores with everything else on this "
        "machine: figures are those of this machine at this load, not of a mesh of as many hosts.",
        "dim",
    )
    yield Text(
        f"{report.changes} changes made, {report.skipped} skipped (nothing at rest to change), "
        f"{report.superseded} overtaken by another one, {len(report.lost)} never arrived; "
        f"{report.late_calls} calls to deploy were answered too late, {sum(report.joins_failed.values())} joins were "
        "made again elsewhere.",
        "dim",
    )
    for bar, measured, holds in report.bars:
        yield Text.assemble(("✓ " if holds else "✗ ", "green" if holds else "bold red"), f"{bar}: {measured}")


def _pair(spread: Spread, *, count: bool = False) -> str:
    if not spread.count:
        return "-"
    return f"{spread.p50:.3f} / {spread.p99:.3f} s" + (f" ({spread.count})" if count else "")


def _cpu(report: Report, part: str, who: str) -> str:
    return f"{sum(cores for name, cores in report.parts[part].cpu_cores.items() if name.startswith(who)):.0%}"


def _others(report: Report, part: str) -> str:
    return f"{report.parts[part].other_cores:.0%}"


def _mean_cpu(report: Report, part: str, who: str) -> str:
    found = [cores for name, cores in report.parts[part].cpu_cores.items() if name.startswith(who)]
    return f"{sum(found) / len(found):.1%}"


def _largest(report: Report, who: str) -> str:
    return _megabytes(max(size for name, size in report.resident_bytes.items() if name.startswith(who)))


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"

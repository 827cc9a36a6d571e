"""How jobs look on a terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.training.v1 import training_pb2
from tools.cli.output import human_bytes
from tools.cli.plain import enum_name
from tools.training.curve import draw, extent
from tools.training.status import loss_of, phase_of, recorded, said_wider, state_of, strategy_of

STATES = {"RUNNING": "cyan", "PAUSED": "yellow", "SUCCEEDED": "green", "FAILED": "red"}
_BAR, _CURVE, _ROWS = 36, 60, 8
_OVER = (training_pb2.JOB_STATE_SUCCEEDED, training_pb2.JOB_STATE_FAILED)
_LARGE = 1e8
_TELLS = ("loss", "accuracy", "samples_per_s")
"""Results that come first."""


def shown(job: training_pb2.Job, progress: training_pb2.JobProgress) -> RenderableType:
    """What `aimesh train status` and `--watch` show."""
    return Group(
        headline(job),
        _bar(progress, over=job.state == training_pb2.JOB_STATE_SUCCEEDED),
        *_measured(job, progress),
        *_history(job),
        *curve(progress.points, "loss"),
        *_workers(job, progress),
        *_end(job),
    )


def headline(job: training_pb2.Job) -> Text:
    """One line: where it is and why."""
    state = state_of(job)
    line = Text.assemble((f"{job.id}: ", "bold"), (state, STATES.get(state, "bold")))
    if phase_of(job):
        line.append(f", {phase_of(job)}")
    why = job.error or job.reason
    return line.append(f": {why}" if why else "")


def listed(jobs: Iterable[training_pb2.GetJobResponse]) -> Table:
    """What `aimesh train list` prints."""
    table = Table(box=None, pad_edge=False)
    for title in ("JOB", "STATE", "STRATEGY", "STEP", "LOSS", "WORKERS", "MODEL OR WHY"):
        table.add_column(title, overflow="fold")
    for each in jobs:
        job, progress = each.job, each.progress
        state = state_of(job)
        loss = loss_of(job, progress)
        table.add_row(
            job.id,
            Text(state, style=STATES.get(state, "")),
            strategy_of(job),
            f"{progress.step}/{progress.steps}" if progress.steps else "",
            figure(loss),
            str(len(progress.workers) or ""),
            recorded(job) or job.error or job.reason,
        )
    return table


def curve(points: Sequence[training_pb2.MetricPoint], name: str) -> Iterator[RenderableType]:
    """A measured value over the steps, with its range; nothing below two points. `name` is loss or one of `values`."""
    found = [(float(point.step), value) for point in points if (value := value_of(point, name)) is not None]
    if len(found) < 2:
        return
    low, high = extent(found)
    drawn = draw(found, _CURVE, _ROWS)
    labels = [figure(high), *[""] * (_ROWS - 2), figure(low)]
    wide = max(map(len, labels))
    text = Text(f"\n{name}\n", style="dim")
    for label, line in zip(labels, drawn, strict=True):
        text.append(f"{label:>{wide}} ┤", style="dim").append(f"{line}\n", style="cyan")
    first, last = f"{found[0][0]:.0f}", f"{found[-1][0]:.0f}"
    text.append(f"{'':>{wide}}  {first}{last:>{_CURVE - len(first)}} step", style="dim")
    yield text


def value_of(point: training_pb2.MetricPoint, name: str) -> float | None:
    """A point's loss, step_s or other value; None when it was not measured there."""
    if name in ("loss", "step_s"):
        return float(getattr(point, name))
    return point.values.get(name, None)


def results_table(results: Mapping[str, float]) -> Table:
    """Results, those first that people look for."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in sorted(results, key=lambda name: (_TELLS.index(name) if name in _TELLS else len(_TELLS), name)):
        table.add_row(name, figure(results[name]))
    return table


def figure(value: float | None) -> str:
    """Four digits that count, as 0.05407, 17,130 or 1e+10; empty for what is not known."""
    if value is None:
        return ""
    short = f"{value:.4g}"
    return f"{float(short):,.0f}" if 1e4 <= abs(value) < _LARGE else short


def span(seconds: float) -> str:
    """0.0123 as '12.3 ms', 75 as '1 min 15 s', 7500 as '2 h 5 min'."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bar(progress: training_pb2.JobProgress, *, over: bool) -> Text:
    if not progress.steps:
        return Text("not planned yet", style="dim")
    share = 1.0 if over else min(1.0, progress.step / progress.steps)
    full = int(share * _BAR)
    line = Text.assemble(("━" * full, "green"), ("━" * (_BAR - full), "dim"))
    line.append(f"  {progress.step}/{progress.steps}  {share:.0%}")
    return line.append(f"  {span(progress.eta_s)} to go" if progress.eta_s else "")


def _measured(job: training_pb2.Job, progress: training_pb2.JobProgress) -> Iterator[Text]:
    loss = loss_of(job, progress)
    parts = [
        strategy_of(job),
        f"loss {figure(loss)}" if loss is not None else "",
        f"{span(progress.step_s)} a step" if progress.step_s else "",
        f"{figure(progress.samples_per_s)} samples/s" if progress.samples_per_s else "",
    ]
    yield Text("  ".join(part for part in parts if part))
    if (wider := said_wider(job.plan)) and job.state not in _OVER:
        yield Text(f"goes on as {wider}", style="dim")


def _history(job: training_pb2.Job) -> Iterator[Text]:
    """What became of earlier attempts, and what is safe."""
    parts = [
        f"attempt {job.attempt.number}" if job.attempt.number > 1 else "",
        f"{job.failures} lost, {job.lost_steps} steps made twice" if job.failures else "",
        f"gave its nodes {_times(job.preemptions)} to others" if job.preemptions else "",
        f"checkpoint at step {job.checkpoint.step}" if job.HasField("checkpoint") else "",
    ]
    said = "  ".join(part for part in parts if part)
    if said:
        yield Text(said, style="dim")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _workers(job: training_pb2.Job, progress: training_pb2.JobProgress) -> Iterator[RenderableType]:
    if not progress.workers or job.state in _OVER:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("RANK", "NODE", "PID", "STATE", "STEP", "OWN SAMPLES/S", "MEMORY", "GPU", ""):
        table.add_column(
            title, justify="right" if title in ("RANK", "PID", "STEP", "OWN SAMPLES/S", "MEMORY") else "left"
        )
    for worker in progress.workers:
        done = worker.progress
        table.add_row(
            str(worker.worker.rank),
            worker.worker.node,
            str(worker.pid or ""),
            enum_name(training_pb2.TaskState.DESCRIPTOR, worker.state).lower() if worker.state else "",
            str(done.point.step or ""),
            figure(done.samples_per_s or None),
            human_bytes(done.resident_bytes) if done.resident_bytes else "",
            _gpus(worker),
            Text.assemble(("slow  ", "yellow") if worker.straggler else "", worker.message),
        )
    yield Text()
    yield table


def _gpus(worker: training_pb2.WorkerProgress) -> str:
    if not worker.worker.gpus:
        return ""
    used = worker.progress.gpu_memory_bytes
    return ",".join(map(str, worker.worker.gpus)) + (f" {human_bytes(used)}" if used else "")


def _end(job: training_pb2.Job) -> Iterator[RenderableType]:
    if job.results and job.state in _OVER:
        yield Text()
        yield results_table(job.results)
    if recorded(job):
        yield Text(f"Recorded {job.model}. Next: aimesh deploy {job.model}")

"""`aimesh rollout calibrate`: how often rollouts take back a good version, and how soon a bad one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.options import Json

if TYPE_CHECKING:
    from rich.table import Table

    from coordinator.rollout.calibration import Figures


def calibrate(
    rollouts: Annotated[int, typer.Option(min=1, help="Simulated rollouts of each kind.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn: the same seed, the same figures.")] = 1,
    as_json: Json = False,
) -> None:
    """Simulate canary rollouts and judge them as the leader does, beside tests that are made for one look.

    No mesh is needed: requests are drawn, 100 a second, and go through the same comparisons and verdicts as real ones.
    A/A rolls out the same version (5, 25, 50, 100 %, 30 s each): every rollout taken back is a false alarm, of which
    there may be 5 %. A/B rolls out a bad one to 10 %: half of them must be taken back in less than 30 s. Ends with
    status 1 when one of these does not hold.

    Example: [bold]aimesh rollout calibrate --rollouts 200[/bold]
    """
    from rich.progress import Progress

    from coordinator.rollout import calibration
    from tools.cli.output import console, print_json, progress_console

    with Progress(console=progress_console(), transient=True) as progress:
        task = progress.add_task("rollouts", total=calibration.runs(rollouts))
        found = calibration.calibrate(rollouts, seed, lambda count: progress.advance(task, count))
    good = all(each.good is not False for each in found)
    if as_json:
        print_json({"rollouts": rollouts, "seed": seed, "good": good, "rows": [plain(each) for each in found]})
    else:
        console().print(table(found, rollouts, seed))
        console().print("every bar is met" if good else "a bar is not met", style="green" if good else "bold red")
    if not good:
        raise typer.Exit(1)


def plain(row: Figures) -> dict[str, Any]:
    """For JSON."""
    return {
        "scenario": row.scenario.name,
        "look_s": row.scenario.look_s,
        "judge": row.judge,
        "worse": row.scenario.worse,
        "taken_back": row.taken_back,
        "share": row.share,
        "interval": list(row.interval),
        "held": row.held,
        "median_s": row.median_s if row.scenario.worse else None,
        "p90_s": row.p90_s if row.scenario.worse else None,
        "promoted_s": row.promoted_s,
        "good": row.good,
    }


def table(rows: list[Figures], rollouts: int, seed: int) -> Table:
    """For people."""
    from rich.table import Table

    made = Table(title=f"{rollouts} rollouts of each kind, seed {seed}", title_justify="left")
    for name in ("what is rolled out", "look", "tests", "taken back", "95 %", "median", "9 of 10", "held", "bar", ""):
        made.add_column(name, justify="left" if name in ("what is rolled out", "tests", "bar", "") else "right")
    for row in rows:
        made.add_row(*_cells(row), end_section=row.judge == "naive")
    return made


def _cells(row: Figures) -> tuple[str, ...]:
    low, high = row.interval
    worse = row.scenario.worse
    bar = "" if row.good is None else "median < 30 s" if worse else "at most 5 %"
    return (
        row.scenario.name,
        f"{row.scenario.look_s} s",
        row.judge,
        f"{100 * row.share:.1f} %",
        f"{100 * low:.1f} - {100 * high:.1f}",
        _seconds(row.median_s) if worse else "",
        _seconds(row.p90_s) if worse else "",
        f"{100 * row.held / row.rollouts:.1f} %",
        bar,
        {True: "✓", False: "✗", None: ""}[row.good],
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} s"

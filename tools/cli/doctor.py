"""`aimesh doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tools.cli.options import Json

if TYPE_CHECKING:
    from rich.text import Text

    from tools.doctor.finding import Check, Finding

EXIT_FAILED = 5


def doctor(as_json: Json = False) -> None:
    """Check what this machine has and lacks, and say what to do. Starts a real Triton for some seconds.

    Exit code 5 when something fails; warnings alone give 0.

    Example: [bold]aimesh doctor[/bold]
    """
    from meshkit.logs import LogSettings, configure_logs
    from tools.cli.output import console, print_json, progress_console
    from tools.doctor.checks import CHECKS

    configure_logs(LogSettings(level="error", format="text"))
    found: list[tuple[Check, Finding]] = []
    for check in CHECKS:
        with progress_console().status(check.name):
            finding = check.look()
        found.append((check, finding))
        if not as_json:
            console().print(finding_line(check, finding), soft_wrap=True)
    failed = [check.name for check, finding in found if finding.level == "fail"]
    if as_json:
        print_json({"ok": not failed, "checks": [finding_json(check, finding) for check, finding in found]})
    if failed:
        raise typer.Exit(EXIT_FAILED)


def finding_line(check: Check, finding: Finding) -> Text:
    """One check for people: a mark, what was seen, and below it what to do."""
    from rich.text import Text

    mark, style = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}[finding.level]
    line = Text.assemble((f"{mark} ", style), f"{check.name:<13}", finding.seen)
    if finding.advice:
        line.append(f"\n  {'':<13}→ {finding.advice}", style)
    return line


def finding_json(check: Check, finding: Finding) -> dict[str, str]:
    """One check for programs."""
    return {"name": check.name, "level": finding.level, "seen": finding.seen, "advice": finding.advice}

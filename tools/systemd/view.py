"""What `aimesh install` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import join

from tools.cli.output import console, print_json
from tools.systemd.apply import Done, at_root, below
from tools.systemd.plan import Plan

_SAID = {
    "new": "written",
    "changed": "brought up to date",
    "unchanged": "unchanged",
    "replaced": "replaced; the old one is beside it as .old",
}


def show_plan(plan: Plan, root: Path, *, as_json: bool) -> None:
    """Every file with its path and content, every command, and what is left to do."""
    commands = [join(at_root(command, root)) for command in plan.commands]
    if as_json:
        files = [{"path": str(below(root, file.path)), "text": file.text} for file in plan.files]
        print_json({"files": files, "commands": commands, **_rest(plan)})
        return
    out = console()
    for file in plan.files:
        out.print(f"### {below(root, file.path)}", style="bold", soft_wrap=True)
        out.print(file.text, soft_wrap=True)
    out.print("### commands that would run", style="bold")
    out.print("\n".join(commands) + "\n", soft_wrap=True)
    _show_next(plan)


def show_done(plan: Plan, done: Sequence[Done], root: Path, *, as_json: bool) -> None:
    """What became of each file, and what is left to do."""
    if as_json:
        files = [{"path": str(one.path), "outcome": one.outcome} for one in done]
        print_json({"files": files, **_rest(plan)})
        return
    for one in done:
        console().print(f"{one.path}  {_SAID[one.outcome]}", soft_wrap=True)
    for command in plan.commands:
        console().print(f"{join(at_root(command, root))}  done", soft_wrap=True)
    _show_next(plan)


def _rest(plan: Plan) -> dict[str, list[str]]:
    return {"next": list(plan.next_steps), "warnings": list(plan.warnings)}


def _show_next(plan: Plan) -> None:
    console().print("Next:", style="bold")
    for number, step in enumerate(plan.next_steps, 1):
        console().print(f"  {number}. {step}", soft_wrap=True)
    for warning in plan.warnings:
        console().print(f"warning: {warning}", style="yellow", soft_wrap=True)

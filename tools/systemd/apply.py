"""Carrying out an installation: the files, then the commands; all or nothing where it can be told before."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meshkit.errors import ConflictError, PreconditionError
from meshkit.files import write_atomically
from tools.systemd.plan import Plan, PlannedFile

Outcome = Literal["new", "unchanged", "changed", "replaced"]
_COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Done:
    """What became of one file."""

    path: Path
    outcome: Outcome


def judge(plan: Plan, root: Path, *, force: bool) -> list[Outcome]:
    """What would become of each file. Raises ConflictError when a configuration would be overwritten without force."""
    outcomes = [_outcome(file, root) for file in plan.files]
    kept = [
        str(below(root, file.path)) for file, found in zip(plan.files, outcomes, strict=True) if found == "replaced"
    ]
    if kept and not force:
        raise ConflictError(
            f"{', '.join(kept)} exists and differs from what these options say",
            hint="look at the difference with --dry-run; then --force replaces it and keeps the old one as .old, "
            "and no options but --role leave it and install the rest",
            reason="CONFIG_CHANGED",
        )
    return outcomes


def apply_plan(
    plan: Plan, root: Path, *, force: bool, run: Callable[[tuple[str, ...]], None] | None = None
) -> list[Done]:
    """Writes what differs, then runs the commands, `run_command` unless told otherwise.

    Raises ConflictError before anything is written when a configuration was changed (see `judge`), and
    PreconditionError when a command fails: all files are there then, and the same installation may be run again.
    """
    outcomes = judge(plan, root, force=force)
    done = [Done(_write(file, root, found), found) for file, found in zip(plan.files, outcomes, strict=True)]
    for command in plan.commands:
        (run or run_command)(at_root(command, root))
    return done


def at_root(command: tuple[str, ...], root: Path) -> tuple[str, ...]:
    """The command for another root, such as an image's."""
    return command if root == Path("/") else (command[0], f"--root={root}", *command[1:])


def run_command(command: tuple[str, ...]) -> None:
    """Runs it. Raises PreconditionError with what it said when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise PreconditionError(
            f"{command[0]} is not installed", hint="aimesh install needs systemd", reason="NO_SYSTEMD"
        ) from None
    except subprocess.TimeoutExpired:
        raise PreconditionError(
            f"{' '.join(command)} did not end within {_COMMAND_TIMEOUT_S:g} s", reason="INSTALL_FAILED"
        ) from None
    if done.returncode:
        raise PreconditionError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}",
            hint="the files are written: mend this and run the same `aimesh install` again",
            reason="INSTALL_FAILED",
        )


def below(root: Path, path: str) -> Path:
    """An absolute path seen from another root."""
    return root / path.removeprefix("/")


def _outcome(file: PlannedFile, root: Path) -> Outcome:
    try:
        held = below(root, file.path).read_text()
    except FileNotFoundError:
        return "new"
    if held == file.text:
        return "unchanged"
    return "replaced" if file.config else "changed"


def _write(file: PlannedFile, root: Path, outcome: Outcome) -> Path:
    path = below(root, file.path)
    if outcome == "unchanged":
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    if outcome == "replaced":
        write_atomically(path.with_name(path.name + ".old"), path.read_bytes())
    write_atomically(path, file.text.encode())
    return path

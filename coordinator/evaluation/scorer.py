"""A user's own scorer: a program in the coordinator's scorers_dir that reads questions and writes one number a line."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshkit.errors import AimeshError, InvalidInputError

LIMIT_S = 60.0
"""For a whole set."""
_SHOWN = 300


class ScorerError(AimeshError):
    """A scorer that gave no scores: there is no telling how good the answers are."""


def scorer_path(folder: Path | None, name: str) -> Path:
    """The program of a scorer. Raises InvalidInputError when this coordinator has none of that name."""
    found = folder / name if folder is not None else None
    if found is not None and found.is_file() and os.access(found, os.X_OK):
        return found
    there = sorted(each.name for each in folder.iterdir()) if folder is not None and folder.is_dir() else []
    raise InvalidInputError(
        f"there is no scorer {name!r}; this coordinator has {', '.join(there) or 'none'}",
        hint="put an executable file of that name into coordinator.scorers_dir of every coordinator",
        reason="BAD_GATES",
    )


async def run_scorer(
    program: Path, expected: Sequence[Any], answers: Sequence[Any], limit_s: float = LIMIT_S
) -> list[float]:
    """One score a question. Raises ScorerError when it fails, takes too long or writes something else."""
    lines = [json.dumps({"expected": want, "answer": given}) for want, given in zip(expected, answers, strict=True)]
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ScorerError(f"scorer {program.name} cannot be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate(("\n".join(lines) + "\n").encode())
    except TimeoutError:
        raise ScorerError(f"scorer {program.name} took longer than {limit_s:g} s") from None
    finally:
        await _end(process)
    if process.returncode:
        said = err.decode(errors="replace").strip()[-_SHOWN:]
        raise ScorerError(f"scorer {program.name} ended with {process.returncode}: {said}")
    return _numbers(program.name, out.decode(errors="replace"), len(lines))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends it and what it has started."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


def _numbers(name: str, text: str, count: int) -> list[float]:
    lines = text.split()
    if len(lines) != count:
        raise ScorerError(f"scorer {name} wrote {len(lines)} numbers for {count} questions")
    try:
        found = [float(line) for line in lines]
    except ValueError as error:
        raise ScorerError(f"scorer {name}: {error}") from None
    if not all(map(math.isfinite, found)):
        raise ScorerError(f"scorer {name} wrote a number that is not finite")
    return found

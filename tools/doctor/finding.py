"""What a check is and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    level: Level
    seen: str
    advice: str = ""
    """What to do; empty when all is well."""


@dataclass(frozen=True)
class Check:
    """One thing that a machine needs."""

    name: str
    look: Callable[[], Finding]


def ok(seen: str) -> Finding:
    """All is well."""
    return Finding("ok", seen)


def warn(seen: str, advice: str) -> Finding:
    """It works, with a limit that one should know of."""
    return Finding("warn", seen, advice)


def fail(seen: str, advice: str) -> Finding:
    """The mesh, or a part of it, cannot run here."""
    return Finding("fail", seen, advice)

"""What happened to a job: facts, one JSON line each. Times are seconds of the machine's monotonic clock."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.history import Event, Stall, to_line


@dataclass(frozen=True)
class Record:
    """The job as it was written."""

    at: float
    state: str
    phase: str
    attempt: int
    from_step: int
    checkpoint: int
    """Step of the recorded one; 0 without one."""
    failures: int
    preemptions: int
    lost_steps: int
    nodes: Sequence[str]
    """Of its newest attempt, by rank."""
    reason: str = ""
    error: str = ""


@dataclass(frozen=True)
class Step:
    """A step, or a round, as rank 0 of an attempt noted it."""

    at: float
    attempt: int
    step: int
    loss: float
    clients: int = 0
    """Of a round: whose updates counted."""


@dataclass
class Course:
    """Everything of one job, from before it was disturbed until it was over."""

    scenario: str = ""
    job: str = ""
    healed: float = 0.0
    """When the last thing was done to it."""
    records: list[Record] = field(default_factory=list)
    """At least one of each attempt, by time."""
    steps: list[Step] = field(default_factory=list)
    """Of all attempts, by time."""
    events: list[Event] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Processes of the job that were there when they should have been gone."""

    @property
    def first(self) -> float:
        """When harm was done first, or anything; infinite when nothing was."""
        return min((event.at for event in self.events), default=math.inf)

    def write(self, path: Path) -> None:
        """As JSON lines, the head first."""
        head = {"kind": "Head", **{key: getattr(self, key) for key in ("scenario", "job", "healed", "left")}}
        facts: list[Any] = [*self.records, *self.steps, *self.events, *self.stalls]
        facts.sort(key=lambda fact: fact.at)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [json.dumps(head), *map(to_line, facts)]))

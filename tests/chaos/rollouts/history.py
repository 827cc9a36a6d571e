"""What happened in a rollout: facts, one JSON line each. Times are seconds of the machine's monotonic clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.history import Event, Leader, Stall, to_line


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it."""

    client: str
    start: float
    end: float
    code: str
    """gRPC status of the whole call, retries included."""
    user: str
    """Value of the header that cohorts are made by."""
    version: str = ""
    """Who answered, by its own word; empty when nobody did."""
    right: bool = False
    message: str = ""


@dataclass(frozen=True)
class Wish:
    """The deployment as it was written at a revision."""

    at: float
    revision: int
    weights: Mapping[str, int]
    """By version."""
    replicas: Mapping[str, int]
    """By version."""
    sticky: str = ""
    """The header that keeps cohorts together."""
    mirror: str = ""
    """The version that gets copies."""


@dataclass(frozen=True)
class Move:
    """The rollout as it was written at a revision."""

    at: float
    revision: int
    id: str
    state: str
    phase: str
    step: int
    reason: str


@dataclass
class History:
    """Everything from just before one rollout until just after it."""

    scenario: str = ""
    began: float = 0.0
    ended: float = 0.0
    old: str = ""
    """The version that everything was of before."""
    new: str = ""
    """The version that it was rolled out to."""
    answers: list[Answer] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    leaders: list[Leader] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    """The first is the one from before."""
    moves: list[Move] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)

    def add(self, fact: object) -> None:
        """Takes one fact of any kind."""
        getattr(self, _LISTS[type(fact).__name__]).append(fact)

    def write(self, path: Path) -> None:
        """As JSON lines, the head first."""
        head = {"kind": "Head", **{key: getattr(self, key) for key in ("scenario", "began", "ended", "old", "new")}}
        facts = sorted((fact for name in _LISTS.values() for fact in getattr(self, name)), key=_moment)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [json.dumps(head), *map(to_line, facts)]))


_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Answer, Event, Leader, Wish, Move, Stall)}
_LISTS = {
    "Answer": "answers",
    "Event": "events",
    "Leader": "leaders",
    "Wish": "wishes",
    "Move": "moves",
    "Stall": "stalls",
}


def from_line(line: str) -> Any:
    """The fact that `to_line` wrote."""
    values = json.loads(line)
    return _KINDS[values.pop("kind")](**values)


def _moment(fact: Any) -> float:
    return float(fact.start if isinstance(fact, Answer) else fact.at)

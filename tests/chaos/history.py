"""What happened in a scenario: facts, one JSON line each. Times are seconds of the machine's monotonic clock, which all
processes share and no clock jump moves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Request:
    """One request as its client saw it."""

    client: str
    start: float
    end: float
    code: str
    """gRPC status of the whole call, retries included."""
    node: str = ""
    """Who answered; empty when nobody did."""
    right: bool = False
    message: str = ""


@dataclass(frozen=True)
class Event:
    """Something that the scenario did."""

    at: float
    what: str
    target: str
    fault: bool = True
    """Whether it did harm; else it prepared or healed."""


@dataclass(frozen=True)
class Leader:
    """The leader's key in etcd at a revision: `term` is its create revision. Both empty when it was deleted."""

    at: float
    revision: int
    term: int
    id: str


@dataclass(frozen=True)
class Node:
    """A node as it was written at a revision."""

    at: float
    revision: int
    node: str
    epoch: int
    state: str
    triton_pid: int


@dataclass(frozen=True)
class Route:
    """Whether the state in etcd has a node answer for the model, from now on."""

    at: float
    node: str
    serving: bool


@dataclass(frozen=True)
class Look:
    """What was not as it should be in the whole mesh at this moment; empty when nothing."""

    at: float
    problems: Sequence[str]


@dataclass(frozen=True)
class Stall:
    """So many seconds' worth of the machine, of the time until `at`, went to others: bars are longer by as much."""

    at: float
    seconds: float


@dataclass
class History:
    """Everything of one scenario. `healed` is when the last fault was gone and what was restarted said that it runs."""

    scenario: str = ""
    began: float = 0.0
    healed: float = 0.0
    roles: dict[str, str] = field(default_factory=dict)
    """Whom the scenario meant by victim, leader and so on."""
    requests: list[Request] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    leaders: list[Leader] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)

    def add(self, fact: object) -> None:
        """Takes one fact of any kind."""
        getattr(self, _LISTS[type(fact).__name__]).append(fact)

    def write(self, path: Path) -> None:
        """As JSON lines, the head first."""
        head = {"kind": "Head", **{key: getattr(self, key) for key in ("scenario", "began", "healed", "roles")}}
        facts = sorted((fact for name in _LISTS.values() for fact in getattr(self, name)), key=_moment)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [json.dumps(head), *map(to_line, facts)]))


_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Request, Event, Leader, Node, Route, Look, Stall)}
_LISTS = {
    "Request": "requests",
    "Event": "events",
    "Leader": "leaders",
    "Node": "nodes",
    "Route": "routes",
    "Look": "looks",
    "Stall": "stalls",
}


def to_line(fact: Any) -> str:
    """One fact as JSON."""
    return json.dumps({"kind": type(fact).__name__, **asdict(fact)})


def from_line(line: str) -> Any:
    """The fact that `to_line` wrote."""
    values = json.loads(line)
    return _KINDS[values.pop("kind")](**values)


def read_history(path: Path) -> History:
    """The history that `write` wrote."""
    head, *lines = path.read_text().splitlines()
    values = json.loads(head)
    del values["kind"]
    history = History(**values)
    for line in lines:
        history.add(from_line(line))
    return history


def during(facts: Iterable[Fact], began: float, ended: float) -> list[Fact]:
    """The facts of a stretch of time."""
    return [fact for fact in facts if began <= _moment(fact) <= ended]


def _moment(fact: Any) -> float:
    return float(fact.start if isinstance(fact, Request) else fact.at)

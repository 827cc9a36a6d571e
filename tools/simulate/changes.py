"""Which changes of state have reached which clients: the measurement itself, by content. Pure but for one event.

A change begins when its cause is sent (an agent's report, a call of the API, the cut of a connection) and has arrived
when the last client that must see it has acknowledged endpoints in which it shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Endpoints = frozenset[str]
"""The nodes that a client may call for its model."""
Shows = Callable[[Endpoints], bool]
"""Whether a change shows in a client's endpoints."""


def has(node: str) -> Shows:
    """The node may be called."""
    return lambda endpoints: node in endpoints


def lacks(node: str) -> Shows:
    """The node may not be called."""
    return lambda endpoints: node not in endpoints


def counts(size: int) -> Shows:
    """So many nodes may be called."""
    return lambda endpoints: len(endpoints) == size


@dataclass(eq=False)
class Change:
    """One change on its way. `waiting` are the clients, by number, that have not acknowledged it yet."""

    kind: str
    about: str
    """The node or the model that changed."""
    began: float
    shows: Shows
    waiting: set[int]
    concerned: int
    models: frozenset[str]
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Arrival:
    """A change that the last client has acknowledged."""

    kind: str
    took_s: float
    clients: int


class Board:
    """What every client has acknowledged, and the changes that are not everywhere yet. Times are in seconds."""

    def __init__(self, watchers: Mapping[str, Iterable[int]]) -> None:
        """`watchers` are the clients of each model."""
        self._watchers = {model: tuple(clients) for model, clients in watchers.items()}
        self._seen: dict[int, Endpoints] = {}
        self._pending: dict[str, list[Change]] = {}
        self.arrivals: list[Arrival] = []
        self.superseded = 0
        """Changes that another one overtook before they were everywhere."""

    def begin(self, kind: str, about: str, models: Iterable[str], shows: Shows, now: float) -> Change | None:
        """A change is made now. None when no client has to see it, or all see it already."""
        concerned = frozenset(models)
        waiting = {
            client
            for model in concerned
            for client in self._watchers.get(model, ())
            if not shows(self._seen.get(client, frozenset()))
        }
        if not waiting:
            return None
        change = Change(kind, about, now, shows, waiting, len(waiting), concerned)
        for model in concerned:
            self._pending.setdefault(model, []).append(change)
        return change

    def acknowledged(self, client: int, model: str, endpoints: Endpoints, now: float) -> None:
        """A client has acknowledged endpoints."""
        self._seen[client] = endpoints
        for change in list(self._pending.get(model, ())):
            if client in change.waiting and change.shows(endpoints):
                change.waiting.discard(client)
                if not change.waiting:
                    self.arrivals.append(Arrival(change.kind, now - change.began, change.concerned))
                    change.arrived.set()
                    self._forget(change)

    def supersede(self, kind: str, about: str, model: str = "") -> None:
        """Gives up the pending changes of a kind about something: its cause was taken back."""
        for change in {each for name, pending in self._pending.items() if model in ("", name) for each in pending}:
            if (change.kind, change.about) == (kind, about):
                self.superseded += 1
                self._forget(change)

    def pending(self) -> list[Change]:
        """Changes that are not everywhere yet, oldest first."""
        return sorted({each for pending in self._pending.values() for each in pending}, key=lambda each: each.began)

    def rests(self, model: str, size: int) -> bool:
        """Whether nothing is on its way that concerns a model, and all its clients have so many endpoints."""
        return not self._pending.get(model) and all(
            len(self._seen.get(client, ())) == size for client in self._watchers.get(model, ())
        )

    def served(self, size: int) -> int:
        """How many clients have acknowledged so many endpoints."""
        return sum(len(endpoints) == size for endpoints in self._seen.values())

    def abandon(self, change: Change) -> None:
        """Waits for a change no more."""
        if change in self.pending():
            self._forget(change)

    def _forget(self, change: Change) -> None:
        for model in change.models:
            self._pending[model].remove(change)

"""A round while it is made, and what is left of it when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.federated.state import Global
from training.federated.updates import Total, Update


@dataclass
class Open:
    """A round under way."""

    number: int
    chosen: list[int]
    total: Total
    started_s: float | None
    """When its deadline began to run: a client was there. None before."""
    turn: int = 0
    given: dict[int, int] = field(default_factory=dict)
    """Samples of each client that has been given the round."""
    taken: dict[int, Update] = field(default_factory=dict)
    """Updates that count, by client; their files are there only while they are held."""
    refused: dict[int, str] = field(default_factory=dict)
    """Why an update does not count, by client."""

    @property
    def waiting(self) -> list[int]:
        """Clients that were chosen and have not answered."""
        return [client for client in self.chosen if client not in self.taken and client not in self.refused]

    def late(self, now_s: float, deadline_s: float) -> bool:
        """Whether its deadline has run out."""
        return self.started_s is not None and now_s >= self.started_s + deadline_s

    def deny(self, client: int, why: str) -> None:
        """A client's update does not count; what was said of it first stays."""
        self.refused.setdefault(client, f"client {client}: {why}")


@dataclass(frozen=True)
class Closed:
    """A round that is over."""

    state: Global
    clients: int
    refused: Mapping[int, str]
    samples: int
    steps: int
    length: float
    """Of the mean update."""
    epsilon: float
    """What the privacy accountant says; infinite without noise."""

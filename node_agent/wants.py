"""What a fetch in chunks still needs, what is under way, and who is not asked for a while. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MOST_WANTED = 64
"""Chunks, and addresses to avoid, named in one request."""
MOST_PEERS = 64
"""Agents that are remembered."""
LIAR_S = 300.0
"""So long nobody asks who sent something wrong."""
SILENT_S = 15.0
"""And so long, who did not answer, or did not have what he was said to have."""


@dataclass
class Wants:
    """Chunks by number, in an order of their own, so that agents that begin together fetch different ones."""

    missing: Iterable[int]
    clock: Callable[[], float]
    rng: random.Random
    peers: set[str] = field(default_factory=set)
    """Agents that have or had some of it; added to as they become known."""
    _left: list[int] = field(init=False)
    _under_way: set[int] = field(default_factory=set, init=False)
    _avoided: dict[str, float] = field(default_factory=dict, init=False)
    _tried: set[tuple[int, str]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.restart(self.missing)

    @property
    def left(self) -> bool:
        """Whether anything is still needed."""
        return bool(self._left)

    def restart(self, missing: Iterable[int]) -> None:
        """These are needed, and nothing is under way."""
        self._left = list(missing)
        self.rng.shuffle(self._left)
        self._under_way.clear()
        self._tried.clear()

    def next(self) -> list[int]:
        """What to ask for next."""
        found = []
        for chunk in self._left:
            if chunk not in self._under_way:
                found.append(chunk)
                if len(found) == MOST_WANTED:
                    break
        return found

    def start(self, chunk: int, address: str) -> None:
        """It is being fetched from there; an empty address is a coordinator."""
        self._under_way.add(chunk)
        self._tried.add((chunk, address))
        if address:
            self.know([address])

    def know(self, peers: Iterable[str]) -> None:
        """These agents have some of it."""
        self.peers.update(sorted(set(peers) - self.peers)[: MOST_PEERS - len(self.peers)])

    def came(self, chunk: int) -> None:
        """It is here."""
        self._under_way.discard(chunk)
        self._left.remove(chunk)
        self._tried = {(other, address) for other, address in self._tried if other != chunk}

    def failed(self, chunk: int) -> None:
        """It is needed again."""
        self._under_way.discard(chunk)

    def avoid(self, address: str, seconds: float) -> None:
        """Nobody is to ask there for so long."""
        self._avoided[address] = max(self._avoided.get(address, 0.0), self.clock() + seconds)

    def avoided(self) -> list[str]:
        """Whom not to ask now: as many as one request may name, those that are avoided longest."""
        now = self.clock()
        self._avoided = {address: until for address, until in self._avoided.items() if until > now}
        return sorted(self._avoided, key=lambda address: (-self._avoided[address], address))[:MOST_WANTED]

    def guess(self, most: int) -> list[tuple[int, str]]:
        """Where to try when nobody says who has what: agents that had something before, then a coordinator.

        No place twice for the same chunk, until `guess_anew`.
        """
        avoided, found = set(self.avoided()), []
        for chunk in self.next():
            known = [each for each in sorted(self.peers - avoided) if (chunk, each) not in self._tried]
            if known:
                found.append((chunk, self.rng.choice(known)))
            elif (chunk, "") not in self._tried:
                found.append((chunk, ""))
            if len(found) == most:
                break
        return found

    def guess_anew(self) -> None:
        """Every place may be tried again."""
        self._tried.clear()

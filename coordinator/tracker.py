"""Where agents fetch chunks from, so that each chunk leaves the coordinators about once. No I/O.

A chunk that some agent holds is fetched from there; one that nobody holds is given to the first agent that asks, from a
coordinator, and the others wait for that one. All of it is in memory and may be lost at any moment: agents tell again
what they hold, and what is not known costs a second copy.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

IDLE_S = 300.0
"""A blob that nobody asked about for so long is forgotten."""
QUIET_S = 6.0
"""An agent that does not say anything for so long (three times what agents keep) fetches nothing any more."""
LONGEST_S = 120.0
"""And so long after it began to fetch a chunk it is not waited for."""
BELIEVED_S = 300.0
"""How long a complaint counts."""
COMPLAINTS = 2
"""So many agents that complain about an address are believed by all others."""
MOST_AT_ONCE = 8
"""Chunks of a blob that are fetched from one agent at a time; who comes then waits for another one to have it."""
_OTHERS = 8
"""Other agents named in one answer."""
_LOOKED_AT = 16
"""Holders of a chunk among which the one with the least to do is chosen."""


@dataclass(frozen=True)
class Ask:
    """One agent's question; see LocateChunksRequest."""

    node_id: str
    wanted: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    avoid: frozenset[str] = frozenset()
    most: int = 0


@dataclass(frozen=True)
class Nodes:
    """The mesh at the moment of a question."""

    addresses: Mapping[str, str]
    """host:port of the agents that are in session and serve others, by node id."""
    whole: Collection[str] = ()
    """Ids of the nodes that hold all of the blob."""


@dataclass(frozen=True)
class Answer:
    """See LocateChunksResponse."""

    sources: list[tuple[int, str]]
    """(chunk, address), the address empty for a coordinator."""
    others: list[str]


@dataclass
class _Agent:
    """One that fetches the blob."""

    held: bytearray
    """1 for each chunk that it said it has."""
    seen: float
    fetching: dict[int, tuple[str, float]] = field(default_factory=dict)
    """By chunk: from which address (empty for a coordinator), and since when."""


@dataclass
class _Blob:
    total: int
    seen: float
    agents: dict[str, _Agent] = field(default_factory=dict)
    complaints: dict[str, dict[str, float]] = field(default_factory=dict)
    """By address: who complained, and when last."""


class Tracker:
    """Of all blobs that are being fetched, by digest."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        """`clock` gives seconds; `rng` chooses among holders that have the same to do."""
        self._clock = clock
        self._rng = rng
        self._blobs: dict[str, _Blob] = {}

    def __len__(self) -> int:
        """How many blobs it remembers."""
        return len(self._blobs)

    def locate(self, digest: str, total: int, ask: Ask, nodes: Nodes) -> Answer:
        """Where some of what is wanted is to be had. All chunks that are named are below `total`."""
        now = self._clock()
        self._forget_idle(now)
        blob = self._blobs.setdefault(digest, _Blob(total, now))
        blob.seen = now
        _drop_gone(blob, ask.node_id, nodes, now)
        _take_note(blob, ask, nodes, now)
        believed = _believed(blob, now)
        open_to = {
            node_id: address
            for node_id, address in nodes.addresses.items()
            if node_id != ask.node_id and address not in ask.avoid and address not in believed
        }
        under_way = [each for agent in blob.agents.values() for each in agent.fetching.items()]
        busy = Counter(address for _, (address, _) in under_way)
        coming = {chunk for chunk, (address, _) in under_way if not address}
        whole = [node_id for node_id in nodes.whole if node_id in open_to]
        found: list[tuple[int, str]] = []
        for chunk in dict.fromkeys(ask.wanted):
            if ask.most and len(found) == ask.most:
                break
            holders = {node_id for node_id, agent in blob.agents.items() if agent.held[chunk]} & open_to.keys()
            address = self._least_busy([open_to[each] for each in holders.union(whole)], busy)
            if address is None and not holders and not whole and chunk not in coming:
                address = ""
            if address is not None:
                blob.agents[ask.node_id].fetching[chunk] = (address, now)
                busy[address] += 1
                found.append((chunk, address))
        others = sorted(open_to[node_id] for node_id in open_to.keys() & {*blob.agents, *whole})
        return Answer(found, self._rng.sample(others, min(_OTHERS, len(others))))

    def _least_busy(self, holders: list[str], busy: Counter[str]) -> str | None:
        """Who of them has least to do; None when all have enough."""
        some = self._rng.sample(sorted(holders), min(_LOOKED_AT, len(holders)))
        least = min(some, key=lambda address: busy[address], default=None)
        return least if least is not None and busy[least] < MOST_AT_ONCE else None

    def _forget_idle(self, now: float) -> None:
        for digest in [digest for digest, blob in self._blobs.items() if now - blob.seen > IDLE_S]:
            del self._blobs[digest]


def _drop_gone(blob: _Blob, asking: str, nodes: Nodes, now: float) -> None:
    """What agents that left said they hold, and what those that went quiet were fetching."""
    for node_id in [each for each in blob.agents if each not in nodes.addresses and each != asking]:
        del blob.agents[node_id]
    for agent in blob.agents.values():
        if now - agent.seen > QUIET_S:
            agent.fetching.clear()
        for chunk in [chunk for chunk, (_, since) in agent.fetching.items() if now - since > LONGEST_S]:
            del agent.fetching[chunk]


def _take_note(blob: _Blob, ask: Ask, nodes: Nodes, now: float) -> None:
    """What the agent has, what it has given up, and whom it complains about."""
    agent = blob.agents.setdefault(ask.node_id, _Agent(bytearray(blob.total), now))
    agent.seen = now
    for chunk in ask.held:
        agent.held[chunk] = 1
        agent.fetching.pop(chunk, None)
    for chunk in ask.wanted:
        agent.held[chunk] = 0
        agent.fetching.pop(chunk, None)
    for address in ask.avoid.intersection(nodes.addresses.values()):
        blob.complaints.setdefault(address, {})[ask.node_id] = now


def _believed(blob: _Blob, now: float) -> set[str]:
    """Addresses that several agents complain about."""
    for address, complaints in list(blob.complaints.items()):
        blob.complaints[address] = {who: when for who, when in complaints.items() if now - when <= BELIEVED_S}
        if not blob.complaints[address]:
            del blob.complaints[address]
    return {address for address, complaints in blob.complaints.items() if len(complaints) >= COMPLAINTS}

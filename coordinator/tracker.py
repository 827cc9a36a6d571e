"""Where agents fetch chunks from, so that each chunk leaves the coordinators about once. No I/O.

A chunk that some agent holds is fetched from there; one that nobody holds is given to the first agent that asks, from a
coordinator, and the others wait for that one. All of it is in memory and may be lost at any moment: agents tell again
what they hold, and what is not known costs a second copy. A question costs about the same however many agents ask.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
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
_SWEEP_S = 1.0
"""How often what agents no longer do is looked for: with a thousand agents, not at each question."""


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


_HAS, _HAD = 1, 2


@dataclass
class _Agent:
    """One that fetches the blob."""

    held: bytearray
    """For each chunk _HAS when it said that it has it, _HAD when it has it no more and still stands among `holders`."""
    seen: float
    fetching: dict[int, tuple[str, float]] = field(default_factory=dict)
    """By chunk: from which address (empty for a coordinator), and since when."""


@dataclass
class _Blob:
    total: int
    seen: float
    swept: float
    agents: dict[str, _Agent] = field(default_factory=dict)
    holders: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By chunk, ids of agents that said they have it. One that has it no more stays until it is come across."""
    busy: Counter[str] = field(default_factory=Counter)
    """By address (empty for a coordinator), how many chunks are being fetched from there."""
    coming: Counter[int] = field(default_factory=Counter)
    """By chunk, how many agents are fetching it from a coordinator."""
    complaints: dict[str, dict[str, float]] = field(default_factory=dict)
    """By address: who complained, and when last."""

    def start(self, agent: _Agent, chunk: int, address: str, now: float) -> None:
        """The agent fetches a chunk from there."""
        self.end(agent, chunk)
        agent.fetching[chunk] = (address, now)
        self.busy[address] += 1
        self.coming[chunk] += not address

    def end(self, agent: _Agent, chunk: int) -> None:
        """It does not any more."""
        if (found := agent.fetching.pop(chunk, None)) is not None:
            self.busy[found[0]] -= 1
            self.coming[chunk] -= not found[0]

    def forget(self, node_id: str) -> None:
        """The agent has left."""
        agent = self.agents.pop(node_id)
        for chunk in list(agent.fetching):
            self.end(agent, chunk)

    def some_holders(self, chunk: int, rng: random.Random) -> list[str]:
        """A few agents that have a chunk, by id."""
        ids, found = self.holders[chunk], 0
        while found < min(len(ids), _LOOKED_AT):
            other = found + int(rng.random() * (len(ids) - found))
            ids[found], ids[other] = ids[other], ids[found]
            agent = self.agents.get(ids[found])
            if agent is not None and agent.held[chunk] == _HAS:
                found += 1
                continue
            if agent is not None:
                agent.held[chunk] = 0
            ids[found] = ids[-1]
            ids.pop()
        return ids[:found]


class Tracker:
    """Of all blobs that are being fetched, by digest."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        """`clock` gives seconds; `rng` chooses among holders that have the same to do."""
        self._clock = clock
        self._rng = rng
        self._blobs: dict[str, _Blob] = {}
        self._swept = clock()

    def __len__(self) -> int:
        """How many blobs it remembers."""
        return len(self._blobs)

    def locate(self, digest: str, total: int, ask: Ask, nodes: Nodes) -> Answer:
        """Where some of what is wanted is to be had. All chunks that are named are below `total`."""
        now = self._clock()
        self._forget_idle(now)
        blob = self._blobs.setdefault(digest, _Blob(total, now, now))
        blob.seen = now
        if now - blob.swept >= _SWEEP_S:
            _sweep(blob, ask.node_id, nodes, now)
        agent = _take_note(blob, ask, nodes, now)
        open_to = _Open(nodes.addresses, ask.node_id, ask.avoid | _believed(blob, now))
        whole = self._some(tuple(nodes.whole), _LOOKED_AT)
        found: list[tuple[int, str]] = []
        for chunk in dict.fromkeys(ask.wanted):
            if ask.most and len(found) == ask.most:
                break
            holders = open_to.of([*blob.some_holders(chunk, self._rng), *whole])
            address = self._least_busy(holders, blob.busy)
            if not holders and not blob.coming[chunk]:
                address = ""
            if address is not None:
                blob.start(agent, chunk, address, now)
                found.append((chunk, address))
        others = open_to.of([*self._some(tuple(blob.agents), 2 * _OTHERS), *whole])
        return Answer(found, self._some(list(dict.fromkeys(others.values())), _OTHERS))

    def _some(self, among: Sequence[str], most: int) -> list[str]:
        return self._rng.sample(among, min(most, len(among)))

    def _least_busy(self, holders: Mapping[str, str], busy: Counter[str]) -> str | None:
        """Where there is least to do of them; None when all have enough."""
        least = min(holders.values(), key=lambda address: (busy[address], self._rng.random()), default=None)
        return least if least is not None and busy[least] < MOST_AT_ONCE else None

    def _forget_idle(self, now: float) -> None:
        if now - self._swept >= _SWEEP_S:
            self._swept = now
            self._blobs = {digest: blob for digest, blob in self._blobs.items() if now - blob.seen <= IDLE_S}


@dataclass(frozen=True)
class _Open:
    """Who one agent may be sent to."""

    addresses: Mapping[str, str]
    itself: str
    barred: frozenset[str]

    def of(self, node_ids: Sequence[str]) -> dict[str, str]:
        """Their addresses, by id, without those that left and those that are avoided."""
        return {
            node_id: address
            for node_id in node_ids
            if (address := self.addresses.get(node_id)) and address not in self.barred and node_id != self.itself
        }


def _sweep(blob: _Blob, asking: str, nodes: Nodes, now: float) -> None:
    """Forgets what agents that left said they hold, and what those that went quiet were fetching."""
    blob.swept = now
    for node_id in [each for each in blob.agents if each not in nodes.addresses and each != asking]:
        blob.forget(node_id)
    for agent in blob.agents.values():
        quiet = now - agent.seen > QUIET_S
        for chunk in [chunk for chunk, (_, since) in agent.fetching.items() if quiet or now - since > LONGEST_S]:
            blob.end(agent, chunk)


def _take_note(blob: _Blob, ask: Ask, nodes: Nodes, now: float) -> _Agent:
    """What the agent has, what it has given up, and whom it complains about."""
    agent = blob.agents.setdefault(ask.node_id, _Agent(bytearray(blob.total), now))
    agent.seen = now
    serves = ask.node_id in nodes.addresses
    for chunk in ask.held:
        if serves and not agent.held[chunk]:
            blob.holders[chunk].append(ask.node_id)
        agent.held[chunk] = _HAS if serves else 0
        blob.end(agent, chunk)
    for chunk in ask.wanted:
        agent.held[chunk] = _HAD if agent.held[chunk] else 0
        blob.end(agent, chunk)
    for address in ask.avoid.intersection(nodes.addresses.values()) if ask.avoid else ():
        blob.complaints.setdefault(address, {})[ask.node_id] = now
    return agent


def _believed(blob: _Blob, now: float) -> frozenset[str]:
    """Addresses that several agents complain about."""
    for address, complaints in list(blob.complaints.items()):
        blob.complaints[address] = {who: when for who, when in complaints.items() if now - when <= BELIEVED_S}
        if not blob.complaints[address]:
            del blob.complaints[address]
    return frozenset(address for address, complaints in blob.complaints.items() if len(complaints) >= COMPLAINTS)

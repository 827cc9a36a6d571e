"""Measures every version of the models that have a rollout, on the leader, once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.election import Election
from coordinator.faults import Faults
from coordinator.mirror import Mirror
from coordinator.rollout.account import Account, Book, cost_of, done_between, memory_of
from coordinator.rollout.window import Window
from coordinator.session import traced_names
from coordinator.state import State, VersionKey

log = structlog.get_logger()

STEP_S = 1.0
PAGE_S = 5.0
"""How exact the beginning of a window is that follows another."""
KEEP_S = 900.0
"""The longest of such windows."""
PRICE_LABEL = "cost_per_hour"
"""The node's label that says what it costs an hour, in any unit that is the same everywhere."""

Loads = Callable[[], Awaitable[Mapping[str, membership_pb2.Load]]]
GatewayCounts = Callable[[], Awaitable[Mapping[tuple[str, str, str], tuple[int, int]]]]
"""Requests and failed ones that gateways sent since a coordinator began to count, by (coordinator, name, version)."""
_Replica = tuple[str, str, str]
"""(node, name, version)."""


async def _no_gateways() -> Mapping[tuple[str, str, str], tuple[int, int]]:
    return {}


class Meter:
    """Keeps what each version did since `begin`. A leader that comes anew begins with nothing."""

    def __init__(
        self,
        mirror: Mirror,
        election: Election,
        loads: Loads,
        gateways: GatewayCounts = _no_gateways,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = mirror
        self._election = election
        self._loads = loads
        self._gateways = gateways
        self._clock = clock
        self._held: dict[_Replica, membership_pb2.ModelLoad] = {}
        self._counted: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._books: dict[str, dict[str, Book]] = {}
        self._at: float | None = None
        self._faults = Faults("meter.fault")
        self.scores: Callable[[str, str], Mapping[str, list[float]]] = lambda _name, _version: {}
        """Asked for a version's scores of its rollout's evaluation, by metric."""

    async def run(self) -> None:
        """Measures while this coordinator leads and there is something to measure, until cancelled."""
        while True:
            began = self._clock()
            with self._faults.kept("all", self._election.term):
                if self._election.term and traced_names(self._mirror.state):
                    await self.step()
                else:
                    self._forget()
            await asyncio.sleep(max(0.0, STEP_S - (self._clock() - began)))

    def begin(self, name: str) -> None:
        """Counts all versions of a model from now on."""
        self._books[name] = {}

    def windows(self, name: str) -> Mapping[str, Window]:
        """What each version did since `begin`; nothing before that."""
        return {
            version: book.total.window(book.trend, self.scores(name, version))
            for version, book in self._books.get(name, {}).items()
        }

    def latest(self, name: str, every_s: float) -> Mapping[str, Window]:
        """The same since the last multiple of so many seconds, KEEP_S at most: windows that follow each other."""
        found = {}
        for version, book in self._books.get(name, {}).items():
            account, trend = book.latest(every_s)
            found[version] = account.window(trend, self.scores(name, version))
        return found

    async def step(self) -> None:
        """Takes the newest reports in. A node that is not heard is counted once it is heard again."""
        loads, gateways = await asyncio.gather(self._loads(), self._gateways())
        state, now = self._mirror.state, self._clock()
        seconds, self._at = now - self._at if self._at is not None else 0.0, now
        names = traced_names(state)
        done: dict[VersionKey, Account] = {}
        for node_id, load in loads.items():
            for model in load.models:
                if model.name in names:
                    with self._faults.kept(f"{model.name}:{model.version} on {node_id}"):
                        self._count(state, node_id, model, seconds, done)
        self._count_gateways(gateways, names, done)
        self._enter(names, seconds, done)

    def _count(
        self,
        state: State,
        node_id: str,
        model: membership_pb2.ModelLoad,
        seconds: float,
        done: dict[VersionKey, Account],
    ) -> None:
        key = (model.name, model.version)
        found = memory_of(model)
        node = state.known.get(node_id)
        if node is not None:
            share = share_of(node, state.versions.get(key), model)
            found += cost_of(price_of(node), share, seconds)
        before = self._held.get((node_id, *key))
        if before is not None:  # what it did before it was first seen is of another time
            found += done_between(before, model)
        self._held[node_id, *key] = model
        done[key] = done.get(key, Account()) + found

    def _count_gateways(
        self,
        counts: Mapping[tuple[str, str, str], tuple[int, int]],
        names: frozenset[str],
        done: dict[VersionKey, Account],
    ) -> None:
        for source, (requests, failures) in counts.items():
            _, name, version = source
            before = self._counted.get(source)
            self._counted[source] = requests, failures
            if name not in names or before is None:
                continue
            if requests < before[0] or failures < before[1]:  # it has started anew
                before = 0, 0
            made = Account(gateway_requests=requests - before[0], gateway_failures=failures - before[1])
            done[name, version] = done.get((name, version), Account()) + made

    def _enter(self, names: frozenset[str], seconds: float, done: Mapping[VersionKey, Account]) -> None:
        for gone in self._books.keys() - names:
            del self._books[gone]
        for replica in [each for each in self._held if each[1] not in names]:
            del self._held[replica]
        for name, books in self._books.items():
            for version in {version for each, version in done if each == name} | books.keys():
                account = done.get((name, version), Account()) + Account(seconds=seconds)
                with self._faults.kept(f"{name}:{version}"):
                    books[version] = books.get(version, Book()).with_step(account, page_s=PAGE_S, keep_s=KEEP_S)

    def _forget(self) -> None:
        self._faults.only(set())
        self._held.clear()
        self._counted.clear()
        self._books.clear()
        self._at = None


def price_of(node: membership_pb2.Node) -> float | None:
    """What a node costs an hour, by its label; None when it has none that is a number."""
    with suppress(ValueError):
        price = float(node.labels.get(PRICE_LABEL, ""))
        return price if 0 <= price < float("inf") else None
    return None


def share_of(
    node: membership_pb2.Node, version: registry_pb2.ModelVersion | None, load: membership_pb2.ModelLoad
) -> float:
    """The part of a node that a replica takes: of its memory or of its GPUs' memory, whichever is more.

    By what the version requires, or, where it says nothing, by what its processes have.
    """
    needs = version.requirements if version is not None else registry_pb2.Requirements()
    memory = needs.memory_bytes or load.resident_bytes
    gpu_memory = needs.gpu_memory_bytes or load.gpu_memory_bytes
    gpus = sum(gpu.memory_bytes for gpu in node.capacity.gpus)
    shares = [
        memory / node.capacity.memory_bytes if node.capacity.memory_bytes else 0.0,
        gpu_memory / gpus if gpus else 0.0,
    ]
    return min(1.0, max(shares))

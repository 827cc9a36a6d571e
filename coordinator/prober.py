"""Asks the Tritons of silent nodes again each second, and writes what changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import structlog

from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.etcd import Created, Etcd, Unchanged
from coordinator.mirror import Mirror
from coordinator.probe import Ask, Probe
from coordinator.session import node_puts
from coordinator.sessions import Sessions
from coordinator.state import State
from meshkit.errors import SupersededError, UnavailableError

log = structlog.get_logger()

PACE_S = 1.0
ORPHAN_S = 2.0
"""How long a node whose session is gone has to join again before its Triton is asked."""


def silent_nodes(state: State, own_id: str, *, leads: bool) -> list[membership_pb2.Node]:
    """The silent nodes that this coordinator is to ask: those whose session it held, by id.

    The leader also asks those of coordinators that are gone, and those without a lease for as long as the answer
    matters: until they are judged dead, and after that while they answer and have something assigned.
    """

    def mine(node: membership_pb2.Node) -> bool:
        leased = node.id in state.nodes
        if leased and node.coordinator_id in state.coordinators:
            return node.coordinator_id == own_id and node.state == membership_pb2.NODE_STATE_SUSPECT
        if leased or node.state != membership_pb2.NODE_STATE_DEAD:
            return leads and (not leased or node.state == membership_pb2.NODE_STATE_SUSPECT)
        return leads and node.id in state.answering and node.id in state.assignments

    return [node for node in state.known.values() if mine(node)]


def orphans(state: State, own_id: str, held: Collection[str], *, leads: bool) -> list[membership_pb2.Node]:
    """Nodes that look as if they were in session and are in none: the coordinator that held it died, or lost etcd."""
    return [
        node
        for node in state.nodes.values()
        if node.state != membership_pb2.NODE_STATE_SUSPECT
        and (
            node.id not in held
            if node.coordinator_id == own_id
            else leads and node.coordinator_id not in state.coordinators
        )
    ]


@dataclass
class Prober:
    """Keeps `Node.probe` true for the nodes that are this coordinator's to ask."""

    etcd: Etcd
    mirror: Mirror
    sessions: Sessions
    own_id: str
    term: Callable[[], int]
    """This coordinator's term; 0 unless it leads."""
    ask: Ask
    now: Callable[[], float] = time.monotonic
    _orphaned: dict[tuple[str, int], float] = field(default_factory=dict, init=False)
    """By (node id, epoch): since when the node has no session."""

    async def run(self) -> None:
        """Asks each second, until cancelled; a frozen coordinator asks nobody, since it could not write it down."""
        while True:
            await asyncio.sleep(PACE_S)
            if self.mirror.frozen:
                self._orphaned.clear()
                continue
            term = self.term()
            async with asyncio.TaskGroup() as tasks:
                for node in self._due(self.mirror.state, leads=bool(term)):
                    tasks.create_task(self._ask_one(node, term))

    def _due(self, state: State, *, leads: bool) -> list[membership_pb2.Node]:
        now = self.now()
        lost = orphans(state, self.own_id, self.sessions.held(), leads=leads)
        self._orphaned = {(node.id, node.epoch): self._orphaned.get((node.id, node.epoch), now) for node in lost}
        waited = [node for node in lost if now - self._orphaned[node.id, node.epoch] >= ORPHAN_S]
        return [*silent_nodes(state, self.own_id, leads=leads), *waited]

    async def _ask_one(self, node: membership_pb2.Node, term: int) -> None:
        try:
            probe = await self.ask(node)
            leased_only = node.state == membership_pb2.NODE_STATE_SUSPECT or node.id not in self.mirror.state.nodes
            if probe != node.probe or not leased_only:
                await self._record(node, probe, term)
        except UnavailableError as error:
            log.warning("probe.not_written", node=node.id, reason=error.message)

    async def _record(self, node: membership_pb2.Node, probe: Probe, term: int) -> None:
        """Writes what was found, unless the node has changed since it was asked; as the leader in that term only."""
        session = self.sessions.held().get(node.id)
        if session is not None and session.node.epoch == node.epoch:
            if session.suspect:
                try:
                    await self.sessions.write(session, probe=probe)
                except SupersededError as error:
                    session.end(error)
            return
        node_key, member_key = keys.node(node.id), keys.member(node.id)
        _, (held, known) = await self.etcd.get(node_key, member_key)
        current = held if held.value is not None else known
        if current.value is None or keys.parse(current.value, membership_pb2.Node()) != node:
            return
        found = membership_pb2.Node()
        found.CopyFrom(node)
        found.probe = probe
        if held.value is not None:
            found.state = membership_pb2.NODE_STATE_SUSPECT
        under_lease, for_good = node_puts(found, held.lease)
        changes = [under_lease, for_good] if held.value is not None else [for_good]
        guards: list[Unchanged | Created] = [
            Unchanged(node_key, held.mod_revision),
            Unchanged(member_key, known.mod_revision),
        ]
        if term:
            guards.append(Created(keys.LEADER, term))
        if await self.etcd.txn(guards, changes) is not None:
            log.warning("node.probed", node=node.id, probe=membership_pb2.Probe.Name(probe))

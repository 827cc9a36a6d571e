"""The leader's judgements: which silent nodes are dead, and which versions are not to be tried again on which node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Created, Delete, Etcd, Put, Unchanged
from coordinator.failures import FailureWatch
from coordinator.mirror import Mirror
from coordinator.settings import CoordinatorSettings
from coordinator.state import State
from meshkit.errors import UnavailableError

log = structlog.get_logger()

PACE_S = 0.5
AT_ONCE = 100
"""Keys deleted in one transaction: etcd takes 128 operations at most (--max-txn-ops)."""


def condemned(state: State) -> list[membership_pb2.Node]:
    """Silent nodes whose lease has lapsed and whose Triton was asked, by id; none while the brake is on."""
    if state.braked:
        return []
    return [
        node
        for node_id, node in state.known.items()
        if node_id not in state.nodes
        and node.state != membership_pb2.NODE_STATE_DEAD
        and node.probe != membership_pb2.PROBE_UNSPECIFIED
    ]


@dataclass
class Judge:
    """Runs on every coordinator and acts on the leader; level-triggered."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    settings: CoordinatorSettings
    now: Callable[[], float]
    """Seconds of a clock that only rises."""
    _watch: FailureWatch = field(default_factory=FailureWatch, init=False)
    _leads_since: tuple[int, float] = field(default=(0, 0.0), init=False)
    """The term, and when it began."""

    async def run(self) -> None:
        """Judges again and again until cancelled."""
        while True:
            await asyncio.sleep(PACE_S)
            if not self.election.term or self.mirror.frozen:
                continue
            try:
                await self._act(self.mirror.state, self.election.fence())
            except UnavailableError as error:
                log.warning("judge.not_written", reason=error.message)

    async def _act(self, state: State, fence: Created) -> None:
        if not self._grace():
            for node in condemned(state):
                if self.mirror.state.braked:
                    break  # many more have vanished since this began
                await self._bury(node, fence)
        failed, forgiven = self._watch.observe(state, self.now())
        for failure in failed:
            key = keys.failure(failure.node_id, failure.name, failure.version)
            if await self.etcd.txn([fence], [Put(key, keys.encode(failure))]) is not None:
                log.warning("replica.given_up", node=failure.node_id, model=failure.name, reason=failure.message)
        for start in range(0, len(forgiven), AT_ONCE):
            part = forgiven[start : start + AT_ONCE]
            await self.etcd.txn([fence], [Delete(keys.failure(*key)) for key in part])

    def _grace(self) -> bool:
        """A new leader trusts every member for one lease: the nodes may be rejoining after a restart of everything."""
        if self._leads_since[0] != self.election.term:
            self._leads_since = (self.election.term, self.now())
        return self.now() - self._leads_since[1] < self.settings.node_ttl_s

    async def _bury(self, node: membership_pb2.Node, fence: Created) -> None:
        """Writes a node DEAD, unless it changed meanwhile. One that was leaving is deleted, as it would have been."""
        node_key, member_key = keys.node(node.id), keys.member(node.id)
        _, (held, known) = await self.etcd.get(node_key, member_key)
        if known.value is None or keys.parse(known.value, membership_pb2.Node()) != node:
            return
        dead = membership_pb2.Node()
        dead.CopyFrom(node)
        dead.state = membership_pb2.NODE_STATE_DEAD
        left = node.state == membership_pb2.NODE_STATE_DRAINING
        changes: Sequence[Put | Delete] = [Delete(member_key) if left else Put(member_key, keys.encode(dead))]
        guards: list[Created | Unchanged] = [fence, Unchanged(node_key, 0), Unchanged(member_key, known.mod_revision)]
        if held.value is None and await self.etcd.txn(guards, changes) is not None:
            log.warning("node.dead", node=node.id, probe=membership_pb2.Probe.Name(node.probe))

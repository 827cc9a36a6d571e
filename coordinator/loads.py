"""The load of every node: of this coordinator's own sessions, and what the other coordinators say of theirs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from coordinator.peers import DEADLINE_S, Peers
from coordinator.sessions import Sessions
from meshkit.errors import UnavailableError

log = structlog.get_logger()

FRESH_S = 1.0
"""Others are asked no more often than this."""

ByNode = Mapping[str, membership_pb2.Load]


class Loads:
    """Call it for the loads by node id. Nodes whose coordinator does not answer are not among them."""

    def __init__(self, sessions: Sessions, peers: Peers, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._peers = peers
        self._clock = clock
        self._others: dict[str, membership_pb2.Load] = {}
        self._asked_at: float | None = None
        self._asking = asyncio.Lock()

    def own(self) -> dict[str, membership_pb2.Load]:
        """Those of this coordinator's sessions."""
        return {key: session.load for key, session in self._sessions.held().items() if session.load is not None}

    async def __call__(self) -> ByNode:
        """All loads, at most about FRESH_S + DEADLINE_S seconds old."""
        async with self._asking:
            if self._asked_at is None or self._clock() - self._asked_at >= FRESH_S:
                self._others = await self._ask_others()
                self._asked_at = self._clock()
        return {**self._others, **self.own()}

    async def _ask_others(self) -> dict[str, membership_pb2.Load]:
        found = await asyncio.gather(*(self._ask(address) for address in self._peers.addresses()))
        return {key: load for loads in found for key, load in loads.items()}

    async def _ask(self, address: str) -> ByNode:
        request = cluster_pb2.ListLoadsRequest()
        try:
            answer = await self._peers.ask(address, lambda cluster: cluster.ListLoads(request, timeout=DEADLINE_S))
        except UnavailableError as error:
            log.info("loads.not_told", coordinator=address, reason=error.message)
            return {}
        return dict(answer.loads)

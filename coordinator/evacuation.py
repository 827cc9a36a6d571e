"""A coordinator that alone has lost etcd sends its agents to those that have not, before their leases lapse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.health import ETCD
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.sessions import Sessions
from meshkit.errors import PreconditionError

log = structlog.get_logger()

PATIENCE_S = 2.0
"""How long a coordinator may be frozen before it asks the others; a member of etcd that goes costs less."""
DEADLINE_S = 1.0
_PACE_S = 0.5


@dataclass
class Evacuation:
    """Looks at its own state and, when that is bad for long, at the others'. When all are frozen, agents stay."""

    mirror: Mirror
    sessions: Sessions
    peers: Peers
    now: Callable[[], float] = time.monotonic

    async def run(self) -> None:
        """Looks until cancelled."""
        frozen_since: float | None = None
        while True:
            await asyncio.sleep(_PACE_S)
            if not self.mirror.frozen:
                frozen_since = None
                continue
            frozen_since = self.now() if frozen_since is None else frozen_since
            if self.now() - frozen_since >= PATIENCE_S and self.sessions.held() and await self._another_has_etcd():
                log.warning("sessions.sent_away", reason=self.mirror.frozen)
                self.sessions.send_away(f"this coordinator has lost etcd: {self.mirror.frozen}")

    async def _another_has_etcd(self) -> bool:
        return any(await asyncio.gather(*(self._has_etcd(address) for address in self.peers.addresses())))

    async def _has_etcd(self, address: str) -> bool:
        try:
            stub: Any = health_pb2_grpc.HealthStub(self.peers.channel(address))
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=ETCD), timeout=DEADLINE_S)
        except (grpc.aio.AioRpcError, PreconditionError) as error:
            log.info("health.not_told", coordinator=address, reason=str(error).splitlines()[0])
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

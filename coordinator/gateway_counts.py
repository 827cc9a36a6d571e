"""What the gateways of the whole mesh counted: each reports to one coordinator, and these are asked for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import structlog

from aimesh.cluster.v1 import cluster_pb2
from coordinator.peers import DEADLINE_S, Peers
from coordinator.state import VersionKey
from coordinator.xds.loads import Counted, GatewayLoads
from meshkit.errors import UnavailableError

log = structlog.get_logger()

OWN = "itself"
"""Stands for this coordinator where others stand by their address."""

ByCoordinator = Mapping[tuple[str, str, str], Counted]
"""By (coordinator, name, version)."""


class GatewayCounts:
    """Call it for what each coordinator's gateways counted of the versions with a rollout that is not over.

    Each counts for itself, since it was started or the rollout was, and from 0 again when it restarts: only what comes
    on top from one answer to the next means something. One that does not answer is left out.
    """

    def __init__(self, own: GatewayLoads, peers: Peers) -> None:
        self._own = own
        self._peers = peers

    async def __call__(self) -> ByCoordinator:
        """The counts at this moment; those of other coordinators up to an interval of reports older."""
        others = await asyncio.gather(*(self._ask(address) for address in self._peers.addresses()))
        return {**_keyed(OWN, self._own.gateway_counts().items()), **{k: v for each in others for k, v in each.items()}}

    async def _ask(self, address: str) -> ByCoordinator:
        request = cluster_pb2.ListGatewayCountsRequest()
        try:
            answer = await self._peers.ask(
                address,
                lambda cluster: cluster.ListGatewayCounts(request, timeout=DEADLINE_S),
            )
        except UnavailableError as error:
            log.info("counts.not_told", coordinator=address, reason=error.message)
            return {}
        return _keyed(
            address, (((each.name, each.version), Counted(each.requests, each.errors)) for each in answer.counts)
        )


def _keyed(coordinator: str, counts: Iterable[tuple[VersionKey, Counted]]) -> ByCoordinator:
    return {(coordinator, *key): counted for key, counted in counts}

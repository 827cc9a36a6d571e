"""Whether every client of the mesh has a deployment's configuration: asked of all coordinators, each for its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aimesh.cluster.v1 import cluster_pb2
from coordinator.peers import DEADLINE_S, Peers
from coordinator.xds.server import XdsServer
from meshkit.errors import UnavailableError


class Acknowledgements:
    """Knows who is still to acknowledge. It waits for nobody: whoever asks decides how long that may go on."""

    def __init__(self, xds: XdsServer, peers: Peers, own_id: str) -> None:
        self._xds = xds
        self._peers = peers
        self._own_id = own_id

    async def missing(self, name: str, revision: int) -> list[str]:
        """Who may not have deployment `name` as of etcd revision `revision`, a text each; none when all do.

        A coordinator that does not answer is one of them for as long as its lease lives: its clients may well live.
        """
        request = cluster_pb2.ListUnacknowledgedRequest(name=name, revision=revision)
        others = await asyncio.gather(*(self._ask(address, request) for address in self._peers.addresses()))
        own = _texts(self._own_id, self._xds.unacknowledged(name, revision))
        return [*own, *(text for texts in others for text in texts)]

    async def _ask(self, address: str, request: cluster_pb2.ListUnacknowledgedRequest) -> list[str]:
        try:
            answer = await self._peers.ask(
                address,
                lambda cluster: cluster.ListUnacknowledged(request, timeout=DEADLINE_S),
            )
        except UnavailableError as error:
            return [error.message]
        return _texts(address, answer.clients)


def _texts(coordinator: str, missing: Iterable[cluster_pb2.Unacknowledged]) -> list[str]:
    """One for each client, its types together."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in missing:
        what = f"{each.type} {each.why}" if each.type else each.why
        found.setdefault((each.client, each.user_agent), []).append(what)
    return [f"{_who(client, agent, coordinator)}: {', '.join(what)}" for (client, agent), what in found.items()]


def _who(client: str, user_agent: str, coordinator: str) -> str:
    if not client:
        return f"coordinator {coordinator}"
    return f"{client}{f' ({user_agent})' if user_agent else ''} at coordinator {coordinator}"

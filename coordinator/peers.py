"""The other coordinators, as this one reaches them: one channel each, kept while it works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from aimesh.cluster.v1 import cluster_pb2_grpc
from coordinator.mirror import Mirror
from meshkit.channel import aio_channel, coordinator_channel
from meshkit.errors import PreconditionError, UnavailableError
from meshkit.tls import TlsSettings, channel_credentials

Answer = TypeVar("Answer")
if TYPE_CHECKING:
    Cluster = cluster_pb2_grpc.ClusterServiceAsyncStub
DEADLINE_S = 1.0
"""How long another coordinator may take to answer a question about itself."""


class Peers:
    """Channels to the coordinators that the mirror knows of. `close` at the end."""

    def __init__(self, mirror: Mirror, own_id: str, tls: TlsSettings) -> None:
        self._mirror = mirror
        self._own_id = own_id
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    def addresses(self) -> list[str]:
        """host:port of each other coordinator, in the order of their ids."""
        found = self._mirror.state.coordinators
        return [found[key].address for key in sorted(found) if key != self._own_id]

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to one of them. Raises PreconditionError when this coordinator's certificate cannot be read."""
        if address not in self._channels:
            self._channels[address] = coordinator_channel(address, credentials=channel_credentials(self._tls))
        return self._channels[address]

    def to_node(self, address: str) -> grpc.aio.Channel:
        """A new channel to an agent's own server, for the caller to close. Raises PreconditionError like `channel`."""
        return aio_channel(address, credentials=channel_credentials(self._tls))

    async def ask(self, address: str, question: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
        """One of them's answer. Raises UnavailableError, whatever kept it from coming."""
        try:
            return await question(cluster_pb2_grpc.ClusterServiceStub(self.channel(address)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.drop(address)
            said = f"coordinator {address} does not say: {error.code().name} {error.details()}"
            raise UnavailableError(said) from None
        except PreconditionError as error:  # own certificate cannot be read
            raise UnavailableError(f"coordinator {address} cannot be asked: {error.message}") from None

    def drop(self, address: str) -> None:
        """Forgets a channel that failed; the next one reads the certificates anew.

        It is not closed: that would cancel the calls that others have on it, and with them the tasks that wait for
        these. It goes with the last of its calls.
        """
        self._channels.pop(address, None)

    async def close(self) -> None:
        """Ends all of them."""
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()

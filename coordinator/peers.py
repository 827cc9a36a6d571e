"""The other coordinators, as this one reaches them: one channel each, kept while it works."""

from __future__ import annotations

import grpc.aio

from coordinator.mirror import Mirror
from meshkit.channel import aio_channel, coordinator_channel
from meshkit.tls import TlsSettings, channel_credentials


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

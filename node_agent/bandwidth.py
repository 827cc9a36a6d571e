"""How many bytes a second go over the network: a token bucket.

Source: J. Turner, "New directions in communications (or which way to the information age?)", IEEE Communications
Magazine 24(10), 1986.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_BURST_S = 0.25
"""So much of a second may go at once after a silence."""
_PIECES_A_SECOND = 16
_LEAST_PIECE = 4096


class Limit:
    """Shared by all that it holds for. Whoever takes waits until what was taken before has been paid for."""

    def __init__(self, bytes_per_second: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """No limit when `bytes_per_second` is 0."""
        self._rate = bytes_per_second
        self._clock = clock
        self._free_at = 0.0
        """When all that was taken will have been paid for."""

    def piece(self, most: int) -> int:
        """How many bytes to send in one message, `most` at most, so that many streams under one limit all get on."""
        return min(most, max(_LEAST_PIECE, self._rate // _PIECES_A_SECOND)) if self._rate else most

    def due(self, size: int) -> float:
        """Takes `size` bytes; the seconds to wait until they may go."""
        if not self._rate:
            return 0.0
        now = self._clock()
        self._free_at = max(self._free_at, now - _BURST_S) + size / self._rate
        return max(0.0, self._free_at - now)

    async def take(self, size: int) -> None:
        """Waits until `size` bytes may go."""
        if (wait_s := self.due(size)) > 0:
            await asyncio.sleep(wait_s)

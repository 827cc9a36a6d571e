"""The evaluation sets that this coordinator can read, the last few of them parsed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from coordinator.blob_exchange import BlobExchange
from coordinator.evaluation.dataset import MOST_BYTES, Question, parse
from meshkit.blobs import BlobStore, checked
from meshkit.errors import InvalidInputError

MOST_SETS = 4
"""Kept parsed."""


@dataclass
class Datasets:
    """Evaluation sets by digest, from this coordinator's disk or another's."""

    blobs: BlobStore
    exchange: BlobExchange

    def __post_init__(self) -> None:
        self._held: OrderedDict[str, Sequence[Question]] = OrderedDict()

    async def read(self, digest: str) -> Sequence[Question]:
        """The questions. Raises NotFoundError, UnavailableError, InvalidInputError."""
        if digest not in self._held:
            self._held[digest] = await asyncio.to_thread(parse, await self._content(digest))
            if len(self._held) > MOST_SETS:
                self._held.popitem(last=False)
        self._held.move_to_end(digest)
        return self._held[digest]

    async def _content(self, digest: str) -> bytes:
        if checked(digest) in self.blobs.held():
            path = self.blobs.path(digest)
            self._check_size(digest, path.stat().st_size)
            return await asyncio.to_thread(path.read_bytes)
        found = bytearray()
        async with aclosing(self.exchange.relay(digest, 0)) as chunks:
            async for chunk in chunks:
                found += chunk
                self._check_size(digest, len(found))
        return bytes(found)

    def _check_size(self, digest: str, size: int) -> None:
        if size > MOST_BYTES:
            raise InvalidInputError(
                f"evaluation set {digest} has more than {MOST_BYTES} bytes", hint="take fewer", reason="BAD_DATASET"
            )

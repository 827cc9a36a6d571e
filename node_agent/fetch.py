"""Brings blobs into the node's store: large ones in chunks from all who have them, others whole from a coordinator."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing

import structlog

from aimesh.artifacts.v1 import artifacts_pb2
from aimesh.registry.v1 import registry_pb2
from meshkit import chunks
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, DataLossError, ExhaustedError, NotFoundError, UnavailableError
from meshkit.failpoints import failpoint
from meshkit.files import is_full
from meshkit.threads import uninterrupted
from meshkit.tls import TlsSettings
from node_agent.bandwidth import Limit
from node_agent.links import Links, Traffic
from node_agent.store import ModelStore
from node_agent.swarm import Site, Swarm, complain

log = structlog.get_logger()

_ROUNDS = 4
"""Rounds through all coordinators without a byte of progress before a fetch fails."""
PARALLEL = 4
"""Chunks of one blob that are fetched at a time, by itself."""


class Fetcher:
    """Brings blobs into the store. Two fetches of the same blob wait for each other."""

    def __init__(
        self,
        store: ModelStore,
        coordinators: Callable[[], Sequence[str]],
        tls: TlsSettings | None = None,
        *,
        node_id: str = "",
        parallel: int = PARALLEL,
        limit: Limit | None = None,
    ) -> None:
        """`coordinators` gives the addresses (host:port) to ask, in order; `limit` is for all that comes in."""
        self._tls = tls or TlsSettings()
        self._store = store
        self._coordinators = coordinators
        self._site = Site(node_id, coordinators, parallel)
        self._limit = limit or Limit()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._peers: defaultdict[str, set[str]] = defaultdict(set)
        """Who had some of a blob, while it is not whole here."""
        self.traffic = Traffic()
        """All that came in so far."""

    async def fetch(self, file: registry_pb2.ModelFile, keep: Collection[str], progress: Callable[[int], None]) -> None:
        """Makes the store hold a file's blob, whole and verified. `progress` is called with the bytes held so far.

        Makes room by evicting what is not in `keep`. Raises NotFoundError when every coordinator says that it has no
        such blob, ExhaustedError when it does not fit, else what the last coordinator failed with.
        """
        async with self._locks[file.digest]:
            if await uninterrupted(self._store.verify, file.digest):
                progress(file.size)
                return
            async with Links(self._tls, self._limit) as links:
                began = time.monotonic()
                try:
                    if file.chunks:
                        await self._in_chunks(links, file, {*keep, file.chunks}, progress)
                    else:
                        await self._whole(links, file, keep, progress)
                finally:
                    self.traffic.add(links.traffic)
            log.info(
                "fetch.done",
                digest=file.digest,
                bytes=file.size,
                from_coordinators=links.traffic.from_coordinators,
                from_peers=links.traffic.from_peers,
                seconds=round(time.monotonic() - began, 3),
            )

    async def fetch_shared(
        self, file: registry_pb2.ModelFile, keep: Collection[str], progress: Callable[[int], None]
    ) -> None:
        """The same for a file that perhaps only other agents hold, as one of a checkpoint, however small it is."""
        async with self._locks[file.digest]:
            if await uninterrupted(self._store.verify, file.digest):
                progress(file.size)
                return
            async with Links(self._tls, self._limit) as links:
                try:
                    if chunks.count(file.size) > 1 and not file.chunks:
                        await self._whole(links, file, keep, progress)
                    else:
                        digests = await self._shared_list(links, file, keep)
                        await self._gather(links, file, digests, {*keep, file.chunks}, progress)
                finally:
                    self.traffic.add(links.traffic)

    async def fetch_unsized(self, digest: str, most: int, keep: Collection[str]) -> None:
        """A blob of which only the digest is known, of at most `most` bytes, from coordinators.

        Raises NotFoundError when every coordinator says that it has no such blob, DataLossError when it is larger, else
        what the last coordinator failed with.
        """
        async with self._locks[digest]:
            if await uninterrupted(self._store.verify, digest):
                return
            failed: AimeshError = UnavailableError("this agent knows no coordinator")
            async with Links(self._tls, self._limit) as links:
                for address in self._coordinators():
                    try:
                        await self._to_its_end(links, address, digest, most, keep)
                    except ExhaustedError:
                        raise
                    except AimeshError as error:
                        failed = error
                    else:
                        return
            raise failed

    async def _to_its_end(self, links: Links, address: str, digest: str, most: int, keep: Collection[str]) -> None:
        self._store.discard(digest)
        received = 0
        request = artifacts_pb2.DownloadBlobRequest(digest=digest)
        async with aclosing(links.read(address, request)) as pieces:
            async for piece in pieces:
                received += len(piece)
                if received > most:
                    self._store.discard(digest)
                    raise DataLossError(f"blob {digest} has more than the {most} bytes that it may have")
                self._store.make_room(len(piece), {*keep, digest})
                self._store.append(digest, piece)
        if not received:
            self._store.append(digest, b"")
        await uninterrupted(self._store.commit, digest)

    def verify(self, digest: str) -> bool:
        """Whether the store holds a blob that is what its digest says; one that is not is dropped. Blocks."""
        return self._store.verify(digest)

    async def _in_chunks(
        self, links: Links, file: registry_pb2.ModelFile, keep: Collection[str], progress: Callable[[int], None]
    ) -> None:
        await self._gather(links, file, await self._chunk_list(links, file, keep), keep, progress)

    async def _gather(
        self,
        links: Links,
        file: registry_pb2.ModelFile,
        digests: Sequence[bytes],
        keep: Collection[str],
        progress: Callable[[int], None],
    ) -> None:
        try:
            with self._store.reserved(file.digest, file.size, keep):
                partial = await uninterrupted(self._store.coming, file.digest, file.size, digests)
                swarm = Swarm(self._site, links, file, partial, self._peers[file.digest])
                for _ in range(_ROUNDS):
                    await swarm.run(progress)
                    failpoint("fetch.chunks_came")
                    if await uninterrupted(self._store.commit_chunks, file.digest):
                        self._peers.pop(file.digest, None)
                        return
                    log.warning("fetch.chunks_gone_bad", digest=file.digest)
                raise DataLossError(
                    f"chunks of blob {file.digest} went bad on this node's disk {_ROUNDS} times in a row",
                    hint="look at the disk; it is tried again by itself",
                )
        except OSError as error:
            if not is_full(error):
                raise
            raise self._no_space(file) from None

    async def _chunk_list(self, links: Links, file: registry_pb2.ModelFile, keep: Collection[str]) -> tuple[bytes, ...]:
        listed = registry_pb2.ModelFile(digest=file.chunks, size=chunks.list_bytes(file.size))
        if not await uninterrupted(self._store.verify, file.chunks):
            await self._whole(links, listed, keep, lambda _: None)
        content = await uninterrupted(self._store.path(file.chunks).read_bytes)
        return chunks.parse_list(content, file.size)

    async def _shared_list(self, links: Links, file: registry_pb2.ModelFile, keep: Collection[str]) -> Sequence[bytes]:
        """Of one chunk it is the blob's own digest."""
        if not file.chunks:
            return [bytes.fromhex(file.digest)] * chunks.count(file.size)
        listed = registry_pb2.ModelFile(digest=file.chunks, size=chunks.list_bytes(file.size))
        if not await uninterrupted(self._store.verify, file.chunks):
            await self._gather(links, listed, [bytes.fromhex(file.chunks)], keep, lambda _: None)
        return chunks.parse_list(await uninterrupted(self._store.path(file.chunks).read_bytes), file.size)

    async def _whole(
        self, links: Links, file: registry_pb2.ModelFile, keep: Collection[str], progress: Callable[[int], None]
    ) -> None:
        """In order, from coordinators."""
        backoff = Backoff(first_s=0.2, most_s=2.0)
        with self._store.reserved(file.digest, file.size, keep):
            while True:
                before = self._store.received(file.digest)
                if (errors := await self._round(links, file, progress)) is None:
                    return
                if self._store.received(file.digest) > before:
                    backoff.reset()
                if errors and all(isinstance(error, NotFoundError | DataLossError) for error in errors):
                    raise _worst(errors)
                if backoff.failures + 1 >= _ROUNDS and errors:
                    raise errors[-1]
                await asyncio.sleep(backoff.next_delay())

    async def _round(
        self, links: Links, file: registry_pb2.ModelFile, progress: Callable[[int], None]
    ) -> list[AimeshError | OSError] | None:
        """Asks each coordinator, for its own copy first; None when the blob has come, else what they failed with."""
        errors: list[AimeshError | OSError] = []
        addresses = self._coordinators()
        for address, held_here in [(each, True) for each in addresses] + [(each, False) for each in addresses]:
            try:
                await self._from(links, address, file, progress, held_here=held_here)
            except ExhaustedError as error:
                if error.reason == "DISK_FULL":
                    raise self._no_space(file) from None
                errors.append(error)
            except (AimeshError, OSError) as error:
                log.info("fetch.failed", coordinator=address, digest=file.digest, reason=str(error))
                errors.append(error)
                if isinstance(error, DataLossError):
                    await complain(links, address, file.digest, self._site.node_id)
            else:
                return None
        return errors

    async def _from(
        self,
        links: Links,
        address: str,
        file: registry_pb2.ModelFile,
        progress: Callable[[int], None],
        *,
        held_here: bool,
    ) -> None:
        """Goes on with the blob from one coordinator until it is whole. Raises DataLossError when that is not it."""
        received = self._store.received(file.digest)
        request = artifacts_pb2.DownloadBlobRequest(digest=file.digest, offset=received, held_here=held_here)
        if received < file.size:
            async with aclosing(links.read(address, request)) as pieces:
                async for piece in pieces:
                    if received + len(piece) > file.size:
                        self._store.discard(file.digest)
                        raise DataLossError(f"{address} sends more than the {file.size} bytes of blob {file.digest}")
                    received = self._store.append(file.digest, piece)
                    progress(received)
                    if received == file.size:
                        break
        if received < file.size:
            raise DataLossError(f"{address} ended the blob before its recorded size")
        failpoint("fetch.downloaded")
        await uninterrupted(self._store.commit, file.digest)

    def _no_space(self, file: registry_pb2.ModelFile) -> ExhaustedError:
        """What to say of a full disk, once the partial blob is off it: others need the space as well."""
        self._store.discard(file.digest)
        return self._store.no_space(file.size)


def _worst(errors: Sequence[AimeshError | OSError]) -> AimeshError | OSError:
    """What says most: content that was wrong, before content that nobody has."""
    return next((error for error in errors if isinstance(error, DataLossError)), errors[-1])

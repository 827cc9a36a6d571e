"""Blobs between coordinators: any of them serves any blob, and each blob lies on two where there are two.

Which two follows from the blob's digest and the coordinators that live (rendezvous hashing: Thaler and Ravishankar,
"Using name-based mappings to increase hit rates", 1998), so nobody has to agree on it, and a coordinator that dies
makes another one fetch what it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.evaluation.dataset import MOST_BYTES as MOST_SET_BYTES
from coordinator.evaluation.dataset import digests_of
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.state import State
from coordinator.training import blobs as training_blobs
from meshkit.backoff import Backoff
from meshkit.blobs import BlobStore
from meshkit.chunks import list_bytes
from meshkit.errors import AimeshError, DataLossError, DeadlineError, NotFoundError
from meshkit.grpc_errors import from_call

log = structlog.get_logger()

COPIES = 2
MESSAGE_TIMEOUT_S = 10.0
"""How long another coordinator may take for the next chunk."""
_PACE_S = 2.0
_AGENTS_ASKED = 3
"""Agents that are asked for a blob which no other coordinator has."""
_MOST_SUSPECTED = 64
_BELIEVED_GOOD_S = 60.0
"""So long a blob is not looked at again because of complaints."""
_RETRY_S = 10.0
"""Longest pause before what nobody could give, or what came damaged, is asked for again."""


def owned(state: State, own_id: str) -> set[str]:
    """Digests of the recorded blobs that this coordinator is to hold."""
    digests = blobs_of(state.versions.values()) | digests_of(state.rollouts.values())
    digests |= training_blobs.kept(state.jobs.values())
    return {digest for digest in digests if own_id in owners(digest, state.coordinators)}


def blobs_of(versions: Iterable[registry_pb2.ModelVersion]) -> set[str]:
    """Digests of all blobs of some versions: their files, and the chunk lists of these."""
    files = [file for version in versions for file in version.files]
    return {digest for file in files for digest in (file.digest, file.chunks) if digest}


def sizes_of(versions: Iterable[registry_pb2.ModelVersion]) -> dict[str, int]:
    """Bytes of each blob of some versions, by digest."""
    files = [file for version in versions for file in version.files]
    lists = {file.chunks: list_bytes(file.size) for file in files if file.chunks}
    return {**lists, **{file.digest: file.size for file in files}}


def size_of(state: State, digest: str) -> int:
    """Bytes that a recorded blob may have: who gives it is not believed."""
    found = sizes_of(state.versions.values()).get(digest)
    found = training_blobs.most_bytes(state.jobs.values(), digest) if found is None else found
    return MOST_SET_BYTES if found is None else found


def holders(state: State, digest: str) -> list[str]:
    """host:port of the agents that hold a blob whole and serve it, by node id."""
    nodes = [node for _, node in sorted(state.nodes.items()) if digest in node.report.blobs]
    return [address for node in nodes if (address := node_address(node))]


def node_address(node: membership_pb2.Node) -> str:
    """host:port of an agent's own server; empty when it has none, or is not in session."""
    if not node.port or node.state in (membership_pb2.NODE_STATE_SUSPECT, membership_pb2.NODE_STATE_DEAD):
        return ""
    return f"[{node.address}]:{node.port}" if ":" in node.address else f"{node.address}:{node.port}"


def owners(digest: str, coordinators: Iterable[str]) -> list[str]:
    """The coordinators that are to hold a blob, by id, the first choice first."""
    ranked = sorted(coordinators, key=lambda each: hashlib.sha256(f"{each}/{digest}".encode()).digest())
    return ranked[:COPIES]


class BlobExchange:
    """Reads blobs from the other coordinators, and keeps this one's share of them."""

    def __init__(self, blobs: BlobStore, mirror: Mirror, peers: Peers, own_id: str) -> None:
        self._blobs = blobs
        self._mirror = mirror
        self._peers = peers
        self._own_id = own_id
        self.busy: set[str] = set()
        """Digests whose partial blob somebody writes: an upload, or this."""
        self._suspected: asyncio.Queue[str] = asyncio.Queue(maxsize=_MOST_SUSPECTED)
        self._found_good: dict[str, float] = {}
        """When a suspected blob was looked at and was as it should be."""
        self._lost = False
        """Whether a blob was found damaged and could not be replaced."""

    async def held_elsewhere(self, digest: str) -> bool:
        """Whether another coordinator that answers holds a blob whole."""
        chunks = self.relay(digest, 0)
        try:
            async for _ in chunks:
                return True
        except AimeshError:
            return False
        finally:
            await chunks.aclose()
        return True  # an empty blob

    async def has_size(self, digest: str, size: int) -> bool | None:
        """Whether a blob has so many bytes; None when no coordinator that answers holds it whole."""
        if digest in self._blobs.held():
            return self._blobs.received(digest) == size
        try:
            return (not size or await self._reaches(digest, size - 1)) and not await self._reaches(digest, size)
        except AimeshError:
            return None

    async def _reaches(self, digest: str, offset: int) -> bool:
        """Whether a blob that others hold has this byte."""
        async with contextlib.aclosing(self.relay(digest, offset, 1)) as pieces:
            return any([bool(piece) async for piece in pieces])

    def suspect(self, digest: str) -> None:
        """Somebody says that this coordinator's copy is damaged: it is looked at soon."""
        seen_good = self._found_good.get(digest)
        if digest not in self._blobs.held() or (seen_good and time.monotonic() - seen_good < _BELIEVED_GOOD_S):
            return
        with contextlib.suppress(asyncio.QueueFull):  # who complains again is heard again
            self._suspected.put_nowait(digest)

    async def repair(self) -> None:
        """Looks at the blobs that somebody complained about, and replaces those that are damaged; until cancelled."""
        while True:
            digest = await self._suspected.get()
            if digest not in self._blobs.held():
                continue
            if await asyncio.to_thread(self._blobs.verify, digest):
                now = time.monotonic()
                kept = {each: when for each, when in self._found_good.items() if now - when < _BELIEVED_GOOD_S}
                self._found_good = {**kept, digest: now}
            else:
                log.error("blob.damaged", digest=digest, effect="discarded; it is fetched from elsewhere")
                self._lost = not await self._fetch(digest) or self._lost

    async def relay(self, digest: str, offset: int, length: int = 0) -> AsyncGenerator[bytes, None]:
        """A blob's bytes from an offset, at most `length` when that is not 0, from the first of the others that has it.

        A part of a job's checkpoint may come from an agent: coordinators hold none while the job runs.

        Raises NotFoundError when none does, DeadlineError or UnavailableError when one breaks off in the middle.
        """
        for address, is_node in self._sources(digest):
            begun = False
            try:
                download = self._download(address, digest, offset, length, is_node=is_node)
                async with contextlib.aclosing(download) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except AimeshError as error:
                if begun:
                    raise
                log.info("blob.not_relayed", coordinator=address, digest=digest, reason=error.message)
            else:
                return
        raise NotFoundError(f"no coordinator that answers holds blob {digest}", hint="push it again")

    async def run(self) -> None:
        """Fetches what this coordinator is to hold and does not, until cancelled; tries again what failed."""
        done: tuple[Any, Any, set[str]] | None = None
        backoff = Backoff(first_s=_PACE_S, most_s=_RETRY_S)
        wait = _PACE_S
        while True:
            await asyncio.sleep(wait)
            state = self._mirror.state
            if self._lost:
                done, self._lost = None, False
            sets = digests_of(state.rollouts.values()) | training_blobs.kept(state.jobs.values())
            if done and state.versions is done[0] and state.coordinators is done[1] and sets == done[2]:
                continue
            missing = sorted(owned(state, self._own_id) - self._blobs.held())
            fetched = [await self._fetch(digest) for digest in missing]
            done = (state.versions, state.coordinators, sets) if all(fetched) else None
            wait = max(_PACE_S, backoff.next_delay()) if done is None else _PACE_S
            if done is not None:
                backoff.reset()

    async def bring(self, digest: str, size: int, address: str) -> bool:
        """Whether a blob of so many bytes is here now; if need be it is fetched from the agent at an address."""
        if digest in self._blobs.held():
            return True
        if digest in self.busy:
            return False
        self.busy.add(digest)
        try:
            return await self._fetch_from(address, digest, is_node=True, most=size)
        finally:
            self.busy.discard(digest)

    def _sources(self, digest: str) -> list[tuple[str, bool]]:
        """Where a blob that is not here may be had: addresses, and whether they are agents'."""
        found = [(address, False) for address in self._peers.addresses()]
        if training_blobs.reported_size(self._mirror.state, digest) is not None:
            found += [(address, True) for address in holders(self._mirror.state, digest)[:_AGENTS_ASKED]]
        return found

    async def _fetch(self, digest: str) -> bool:
        """Whether the blob is here now."""
        if digest in self.busy:
            return False
        self.busy.add(digest)
        try:
            sources = [(address, False) for address in self._peers.addresses()]
            sources += [(address, True) for address in holders(self._mirror.state, digest)[:_AGENTS_ASKED]]
            for address, is_node in sources:
                if await self._fetch_from(address, digest, is_node=is_node):
                    return True
        finally:
            self.busy.discard(digest)
        return False

    async def _fetch_from(self, address: str, digest: str, *, is_node: bool, most: int | None = None) -> bool:
        """Whether the blob is here now. What came is kept for the next one, unless it turned out to be wrong."""
        try:
            most = size_of(self._mirror.state, digest) if most is None else most
            found = self._download(address, digest, self._blobs.received(digest), is_node=is_node)
            async with contextlib.aclosing(found) as pieces:
                async for piece in pieces:
                    if await asyncio.to_thread(self._blobs.append, digest, piece) > most:
                        self._blobs.discard(digest)
                        raise DataLossError(f"{address} sends more than the {most} bytes of blob {digest}")
            await asyncio.to_thread(self._blobs.commit, digest)
        except (AimeshError, OSError) as error:
            log.warning("blob.not_copied", source=address, digest=digest, reason=str(error))
            return False
        log.info("blob.copied", source=address, digest=digest)
        return True

    async def _download(
        self, address: str, digest: str, offset: int, length: int = 0, *, is_node: bool = False
    ) -> AsyncGenerator[bytes, None]:
        request = artifacts_pb2.DownloadBlobRequest(digest=digest, offset=offset, length=length, held_here=True)
        channel = self._peers.to_node(address) if is_node else self._peers.channel(address)
        stub: Any = artifacts_pb2_grpc.ArtifactsServiceStub(channel)
        call = stub.DownloadBlob(request)
        try:
            while True:
                async with asyncio.timeout(MESSAGE_TIMEOUT_S):
                    message = await call.read()
                if not isinstance(message, artifacts_pb2.DownloadBlobResponse):
                    return
                yield message.data
        except TimeoutError:
            raise DeadlineError(f"{address} sent nothing for {MESSAGE_TIMEOUT_S:g} s") from None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._peers.drop(address)
            raise from_call(error) from None
        finally:
            call.cancel()
            if is_node:
                await channel.close(None)

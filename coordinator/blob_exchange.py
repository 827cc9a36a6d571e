"""Blobs between coordinators: any of them serves any blob, and each blob lies on two where there are two.

Which two follows from the blob's digest and the coordinators that live (rendezvous hashing: Thaler and Ravishankar,
"Using name-based mappings to increase hit rates", 1998), so nobody has to agree on it, and a coordinator that dies
makes another one fetch what it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.state import State
from meshkit.backoff import Backoff
from meshkit.blobs import BlobStore
from meshkit.errors import AimeshError, DeadlineError, NotFoundError
from meshkit.grpc_errors import from_call

log = structlog.get_logger()

COPIES = 2
MESSAGE_TIMEOUT_S = 10.0
"""How long another coordinator may take for the next chunk."""
_PACE_S = 2.0
_RETRY_S = 10.0
"""Longest pause before what nobody could give, or what came damaged, is asked for again."""


def owned(state: State, own_id: str) -> set[str]:
    """Digests of the recorded blobs that this coordinator is to hold."""
    digests = {file.digest for version in state.versions.values() for file in version.files}
    return {digest for digest in digests if own_id in owners(digest, state.coordinators)}


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

    async def relay(self, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """A blob's bytes from an offset, from the first of the others that holds it.

        Raises NotFoundError when none does, DeadlineError or UnavailableError when one breaks off in the middle.
        """
        for address in self._peers.addresses():
            begun = False
            try:
                async with contextlib.aclosing(self._download(address, digest, offset)) as chunks:
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
        done: tuple[Any, Any] | None = None
        backoff = Backoff(first_s=_PACE_S, most_s=_RETRY_S)
        wait = _PACE_S
        while True:
            await asyncio.sleep(wait)
            state = self._mirror.state
            if done is not None and state.versions is done[0] and state.coordinators is done[1]:
                continue
            missing = sorted(owned(state, self._own_id) - self._blobs.held())
            fetched = [await self._fetch(digest) for digest in missing]
            done = (state.versions, state.coordinators) if all(fetched) else None
            wait = max(_PACE_S, backoff.next_delay()) if done is None else _PACE_S
            if done is not None:
                backoff.reset()

    async def _fetch(self, digest: str) -> bool:
        """Whether the blob is here now."""
        if digest in self.busy:
            return False
        self.busy.add(digest)
        try:
            async with contextlib.aclosing(self.relay(digest, self._blobs.received(digest))) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(self._blobs.append, digest, chunk)
            await asyncio.to_thread(self._blobs.commit, digest)
        except (AimeshError, OSError) as error:
            log.warning("blob.not_copied", digest=digest, reason=str(error))
            return False
        finally:
            self.busy.discard(digest)
        log.info("blob.copied", digest=digest)
        return True

    async def _download(self, address: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        request = artifacts_pb2.DownloadBlobRequest(digest=digest, offset=offset, held_here=True)
        stub: Any = artifacts_pb2_grpc.ArtifactsServiceStub(self._peers.channel(address))
        call = stub.DownloadBlob(request)
        try:
            while True:
                async with asyncio.timeout(MESSAGE_TIMEOUT_S):
                    message = await call.read()
                if not isinstance(message, artifacts_pb2.DownloadBlobResponse):
                    return
                yield message.data
        except TimeoutError:
            raise DeadlineError(f"coordinator {address} sent nothing for {MESSAGE_TIMEOUT_S:g} s") from None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._peers.drop(address)
            raise from_call(error) from None
        finally:
            call.cancel()

"""ArtifactsService: takes and gives blobs in chunks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import structlog

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from coordinator.api.locating import Locating
from coordinator.blob_exchange import BlobExchange, blobs_of
from coordinator.evaluation.dataset import digests_of
from coordinator.mirror import Mirror
from coordinator.state import State
from coordinator.training import blobs as training_blobs
from meshkit.blobs import CHUNK_BYTES, BlobStore, checked
from meshkit.errors import DataLossError, DeadlineError, InvalidInputError, PreconditionError

log = structlog.get_logger()

UPLOAD_GRACE_S = 3600.0
"""A blob without a version is kept this long."""
UPLOAD_SILENCE_S = 30.0
"""How long an upload may pause between two messages."""
RECORDING_S = 3.0
"""And this long when its last version is deleted: what CreateVersion found here must be here once it has recorded."""


class ArtifactsService(artifacts_pb2_grpc.ArtifactsServiceServicer):
    """Serves aimesh.artifacts.v1 from this coordinator's disk, and from the others' what is not on it."""

    def __init__(self, blobs: BlobStore, exchange: BlobExchange, locating: Locating) -> None:
        self._blobs = blobs
        self._exchange = exchange
        self._locating = locating

    async def StatBlob(self, request: artifacts_pb2.StatBlobRequest, context: Any) -> artifacts_pb2.StatBlobResponse:  # noqa: N802
        """What is held of a blob, here or by another coordinator."""
        received = self._blobs.received(request.digest)
        complete = request.digest in self._blobs.held() or await self._exchange.held_elsewhere(request.digest)
        return artifacts_pb2.StatBlobResponse(complete=complete, received=received)

    async def UploadBlob(  # noqa: N802
        self, request_iterator: AsyncIterator[artifacts_pb2.UploadBlobRequest], context: Any
    ) -> artifacts_pb2.UploadBlobResponse:
        """Stores a blob; see artifacts.proto."""
        head: artifacts_pb2.UploadBlobRequest | None = None
        try:
            async for message in _paced(request_iterator):
                if head is None:
                    head = self._begin(message)
                if len(message.data) > CHUNK_BYTES:
                    raise InvalidInputError(f"a chunk of {len(message.data)} bytes", hint=f"send at most {CHUNK_BYTES}")
                received = await asyncio.to_thread(self._blobs.append, head.digest, message.data)
                if received > head.size:
                    self._blobs.discard(head.digest)
                    raise DataLossError(f"blob {head.digest}: {received} bytes arrived, {head.size} were announced")
            if head is None:
                raise InvalidInputError("an upload without any message")
            if (received := self._blobs.received(head.digest)) < head.size:
                raise PreconditionError(
                    f"blob {head.digest}: the upload ended at byte {received} of {head.size}",
                    hint="ask StatBlob and go on from there",
                )
            await asyncio.to_thread(self._blobs.commit, head.digest)
        finally:
            if head is not None:
                self._exchange.busy.discard(head.digest)
        return artifacts_pb2.UploadBlobResponse()

    async def DownloadBlob(  # noqa: N802
        self, request: artifacts_pb2.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
        """Sends a blob."""
        if request.digest not in self._blobs.held() and not request.held_here:
            relayed = self._exchange.relay(checked(request.digest), request.offset, request.length)
            async with contextlib.aclosing(relayed) as pieces:
                async for piece in pieces:
                    yield artifacts_pb2.DownloadBlobResponse(data=piece)
            return
        chunks = self._blobs.read(request.digest, request.offset, request.length)
        while chunk := await asyncio.to_thread(next, chunks, b""):
            yield artifacts_pb2.DownloadBlobResponse(data=chunk)

    async def LocateChunks(  # noqa: N802
        self, request: artifacts_pb2.LocateChunksRequest, context: Any
    ) -> artifacts_pb2.LocateChunksResponse:
        """Where an agent is to fetch chunks."""
        return self._locating.locate(request)

    async def forget_unused(self, mirror: Mirror) -> None:
        """Removes the blobs of versions as they are deleted, when no other version has them; until cancelled.

        First those that a deletion left while this coordinator was away. What was uploaded within the last hour stays:
        its version may be about to be recorded.
        """
        before = mirror.state
        for digest in self._blobs.held() - _referenced(before):
            await self._remove(digest, older_than_s=UPLOAD_GRACE_S)
        async for state in mirror.changes():
            gone, before = unused(before, state), state
            if gone:  # a version with the same content may be on its way to being recorded: look again
                await asyncio.sleep(RECORDING_S)
            for digest in gone & self._blobs.held() - _referenced(mirror.state):
                await self._remove(digest)

    async def _remove(self, digest: str, older_than_s: float = 0.0) -> None:
        """Removes a blob that came longer ago than that. One that the disk does not let go of stays until the start."""
        try:
            if older_than_s and time.time() - self._blobs.path(digest).stat().st_mtime <= older_than_s:
                return
            await asyncio.to_thread(self._blobs.discard, digest)
        except OSError as error:
            log.warning("blob.not_removed", digest=digest, reason=str(error))
        else:
            log.info("blob.removed", digest=digest)

    def _begin(self, head: artifacts_pb2.UploadBlobRequest) -> artifacts_pb2.UploadBlobRequest:
        received = self._blobs.received(head.digest)
        if head.digest in self._blobs.held():
            raise PreconditionError(f"blob {head.digest} is held whole already", hint="ask StatBlob first")
        if head.offset != received:
            raise PreconditionError(
                f"blob {head.digest}: {received} bytes are held, not {head.offset}",
                hint="ask StatBlob and go on from there",
            )
        if head.digest in self._exchange.busy:
            raise PreconditionError(f"blob {head.digest} is on its way from elsewhere", hint="wait, then ask StatBlob")
        self._exchange.busy.add(head.digest)
        return head


def unused(before: State, now: State) -> set[str]:
    """Digests that a version or a training job had in the state before and none has now."""
    if before.versions is now.versions and before.jobs is now.jobs:
        return set()
    versions = [version for key, version in before.versions.items() if key not in now.versions]
    gone = blobs_of(versions) | training_blobs.gone(before.jobs, now.jobs)
    return gone - _referenced(now) if gone else set()


def _referenced(state: State) -> set[str]:
    of_jobs = training_blobs.used(state.jobs.values())
    return blobs_of(state.versions.values()) | digests_of(state.rollouts.values()) | of_jobs


async def _paced(
    messages: AsyncIterator[artifacts_pb2.UploadBlobRequest],
) -> AsyncIterator[artifacts_pb2.UploadBlobRequest]:
    """The messages of an upload. Raises DeadlineError when the next one does not come: others may want to go on."""
    incoming = aiter(messages)
    while True:
        try:
            async with asyncio.timeout(UPLOAD_SILENCE_S):
                message = await anext(incoming, None)
        except TimeoutError:
            raise DeadlineError(
                f"nothing of the upload came for {UPLOAD_SILENCE_S:g} s", hint="ask StatBlob and go on from there"
            ) from None
        if message is None:
            return
        yield message

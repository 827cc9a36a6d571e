"""Fetches blobs from the coordinators, resuming what an earlier try left."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

import grpc
import grpc.aio
import structlog

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.registry.v1 import registry_pb2
from meshkit.backoff import Backoff
from meshkit.channel import coordinator_channel
from meshkit.errors import AimeshError, DataLossError, DeadlineError, ExhaustedError, NotFoundError
from meshkit.failpoints import failpoint
from meshkit.grpc_errors import from_call
from meshkit.tls import TlsSettings, channel_credentials
from node_agent.store import ModelStore
from node_agent.threads import uninterrupted

log = structlog.get_logger()

_Download = grpc.aio.UnaryStreamCall[artifacts_pb2.DownloadBlobRequest, artifacts_pb2.DownloadBlobResponse]

_MESSAGE_TIMEOUT_S = 10.0
"""How long a coordinator may take for the next chunk."""
_ROUNDS = 4
"""Rounds through all coordinators without a byte of progress before a fetch fails."""


class Fetcher:
    """Brings blobs into the store. Two fetches of the same blob wait for each other."""

    def __init__(
        self, store: ModelStore, coordinators: Callable[[], Sequence[str]], tls: TlsSettings | None = None
    ) -> None:
        """`coordinators` gives the addresses (host:port) to ask, in order."""
        self._tls = tls or TlsSettings()
        self._store = store
        self._coordinators = coordinators
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def fetch(self, file: registry_pb2.ModelFile, keep: Collection[str], progress: Callable[[int], None]) -> None:
        """Makes the store hold a file's blob, whole and verified. `progress` is called with the bytes held so far.

        Makes room by evicting what is not in `keep`. Raises NotFoundError when every coordinator says that it has no
        such blob, ExhaustedError when it does not fit, else what the last coordinator failed with.
        """
        async with self._locks[file.digest]:
            if await uninterrupted(self._store.verify, file.digest):
                progress(file.size)
                return
            with self._store.reserved(file.digest, file.size, keep):
                await self._download(file, progress)
            failpoint("fetch.downloaded")
            await uninterrupted(self._store.commit, file.digest)

    def verify(self, digest: str) -> bool:
        """Whether the store holds a blob that is what its digest says; one that is not is dropped. Blocks."""
        return self._store.verify(digest)

    async def _download(self, file: registry_pb2.ModelFile, progress: Callable[[int], None]) -> None:
        backoff = Backoff(first_s=0.2, most_s=2.0)
        while True:
            before = self._store.received(file.digest)
            errors: list[AimeshError | OSError] = []
            for address in self._coordinators():
                try:
                    await self._download_from(address, file, progress)
                except ExhaustedError as error:
                    if error.reason == "DISK_FULL":
                        raise self._no_space(file) from None
                    errors.append(error)
                except (AimeshError, OSError) as error:
                    log.info("fetch.failed", coordinator=address, digest=file.digest, reason=str(error))
                    errors.append(error)
                else:
                    return
            if self._store.received(file.digest) > before:
                backoff.reset()
            if errors and all(isinstance(error, NotFoundError) for error in errors):
                raise errors[-1]
            if backoff.failures + 1 >= _ROUNDS and errors:
                raise errors[-1]
            await asyncio.sleep(backoff.next_delay())

    def _no_space(self, file: registry_pb2.ModelFile) -> ExhaustedError:
        """What to say of a full disk, once the partial blob is off it: others need the space as well."""
        self._store.discard(file.digest)
        return self._store.no_space(file.size)

    async def _download_from(self, address: str, file: registry_pb2.ModelFile, progress: Callable[[int], None]) -> None:
        received = self._store.received(file.digest)
        request = artifacts_pb2.DownloadBlobRequest(digest=file.digest, offset=received)
        async with coordinator_channel(address, credentials=channel_credentials(self._tls)) as channel:
            call = artifacts_pb2_grpc.ArtifactsServiceStub(channel).DownloadBlob(request)
            while received < file.size:
                chunk = await _next_chunk(call, address)
                if received + len(chunk) > file.size:
                    self._store.discard(file.digest)
                    raise DataLossError(f"{address} sends more than the {file.size} bytes of blob {file.digest}")
                received = self._store.append(file.digest, chunk)
                progress(received)


async def _next_chunk(call: _Download, address: str) -> bytes:
    try:
        async with asyncio.timeout(_MESSAGE_TIMEOUT_S):
            message = await call.read()
    except TimeoutError:
        raise DeadlineError(f"{address} sent nothing for {_MESSAGE_TIMEOUT_S:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from None
    if not isinstance(message, artifacts_pb2.DownloadBlobResponse):
        raise DataLossError(f"{address} ended the blob before its recorded size")
    return message.data

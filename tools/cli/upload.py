"""Sends a packaged model to the mesh: blobs first, resumed where they stopped, then the version."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import grpc.aio

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from meshkit.blobs import CHUNK_BYTES
from meshkit.errors import PreconditionError
from meshkit.grpc_errors import from_call
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh

if TYPE_CHECKING:
    from inference.packaging import Package

SLOWEST_BYTES_A_SECOND = 1024 * 1024
"""An upload that is slower than this on the whole is given up."""
Advance = Callable[[int], None]
"""Told how many bytes more are at the coordinator."""


async def push(mesh: Mesh, package: Package, advance: Advance) -> registry_pb2.ModelVersion:
    """Uploads what is missing and records the version; gives it as recorded.

    One that was recorded before gets the package's signatures as well.
    """
    async with connect(mesh, "coordinator") as channel:
        artifacts = artifacts_pb2_grpc.ArtifactsServiceStub(channel)
        for digest, path in package.paths.items():
            await _send_blob(artifacts, digest, path.open("rb"), advance)
        for digest, listed in package.lists.items():
            await _send_blob(artifacts, digest, io.BytesIO(listed), lambda _: None)
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        request = registry_pb2.CreateVersionRequest(version=package.version)
        recorded = (await registry.CreateVersion(request, timeout=CALL_TIMEOUT_S)).version
        signed = {each.key_id for each in recorded.signatures}
        for signature in [each for each in package.version.signatures if each.key_id not in signed]:
            add = registry_pb2.SignVersionRequest(name=recorded.name, version=recorded.version, signature=signature)
            recorded = (await registry.SignVersion(add, timeout=CALL_TIMEOUT_S)).version
        return recorded


async def send_file(mesh: Mesh, digest: str, path: Path) -> None:
    """Uploads what is missing of one file, of which nothing is recorded: without a use it stays for an hour."""
    async with connect(mesh, "coordinator") as channel:
        await _send_blob(artifacts_pb2_grpc.ArtifactsServiceStub(channel), digest, path.open("rb"), lambda _: None)


async def send_blobs(mesh: Mesh, paths: Mapping[str, Path], contents: Mapping[str, bytes], advance: Advance) -> None:
    """Uploads what is missing of some files and contents, by digest, of which nothing is recorded yet."""
    async with connect(mesh, "coordinator") as channel:
        artifacts = artifacts_pb2_grpc.ArtifactsServiceStub(channel)
        for digest, path in paths.items():
            await _send_blob(artifacts, digest, path.open("rb"), advance)
        for digest, content in contents.items():
            await _send_blob(artifacts, digest, io.BytesIO(content), advance)


async def _send_blob(
    artifacts: artifacts_pb2_grpc.ArtifactsServiceAsyncStub, digest: str, content: BinaryIO, advance: Advance
) -> None:
    """Sends what the coordinator does not hold; once more when it holds other than it said (two pushes at a time).

    Closes the content.
    """
    with content:
        await _send(artifacts, digest, content, content.seek(0, io.SEEK_END), advance)


async def _send(
    artifacts: artifacts_pb2_grpc.ArtifactsServiceAsyncStub,
    digest: str,
    content: BinaryIO,
    size: int,
    advance: Advance,
) -> None:
    told = 0

    def tell(sent: int) -> None:
        nonlocal told
        advance(max(0, sent - told))
        told = max(told, sent)

    for last_try in (False, True):
        held = await artifacts.StatBlob(artifacts_pb2.StatBlobRequest(digest=digest), timeout=CALL_TIMEOUT_S)
        if held.complete:
            break
        tell(held.received)
        pieces = upload_pieces(content, digest, held.received, size, tell)
        try:
            await artifacts.UploadBlob(pieces, timeout=CALL_TIMEOUT_S + size / SLOWEST_BYTES_A_SECOND)
        except grpc.aio.AioRpcError as error:
            translated = from_call(error)
            if last_try or not isinstance(translated, PreconditionError):
                raise translated from None
        else:
            break
    tell(size)


def upload_pieces(
    content: BinaryIO, digest: str, offset: int, size: int, tell: Callable[[int], None]
) -> Iterator[artifacts_pb2.UploadBlobRequest]:
    """The messages of one upload: the header with the first piece, then pieces of at most 1 MiB; at least one."""
    request = artifacts_pb2.UploadBlobRequest(digest=digest, offset=offset, size=size)
    content.seek(offset)
    while True:
        request.data = content.read(CHUNK_BYTES)
        yield request
        tell(content.tell())
        if content.tell() >= size:
            return
        request = artifacts_pb2.UploadBlobRequest()


async def push_blob(mesh: Mesh, content: bytes) -> str:
    """Uploads what belongs to no version, a dataset for example, unless it is there; its digest."""
    digest = hashlib.sha256(content).hexdigest()
    async with connect(mesh, "coordinator") as channel:
        await _send_blob(artifacts_pb2_grpc.ArtifactsServiceStub(channel), digest, io.BytesIO(content), lambda _: None)
    return digest

"""Prompts: their text, from wherever among the coordinators it lies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

from aimesh.registry.v1 import registry_pb2
from coordinator.blob_exchange import BlobExchange
from coordinator.registry.checking import MOST_PROMPT
from meshkit.blobs import BlobStore
from meshkit.errors import DataLossError, InvalidInputError


async def prompt_text(blobs: BlobStore, exchange: BlobExchange, version: registry_pb2.ModelVersion) -> str:
    """A prompt's text, checked against its digest.

    Raises InvalidInputError when it is too long or no UTF-8, NotFoundError when no coordinator that answers holds it,
    DataLossError when its bytes are not what they were.
    """
    file = version.files[0]
    data = await _read(blobs, exchange, file.digest)
    if len(data) > MOST_PROMPT:
        raise InvalidInputError(
            f"{file.path} is longer than {MOST_PROMPT} bytes", hint="a prompt is one text, not a data set"
        )
    if hashlib.sha256(data).hexdigest() != file.digest:
        raise DataLossError(
            f"the text of {version.name}:{version.version} is not what was pushed",
            hint="the disk of a coordinator lies; push the same file again after removing the version",
            reason="DIGEST_MISMATCH",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{file.path} is no UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            hint="save it as UTF-8, and push it again",
        ) from None


async def _read(blobs: BlobStore, exchange: BlobExchange, digest: str) -> bytes:
    """A blob's bytes; of one that is too long, the beginning."""
    if digest in blobs.held():
        return await asyncio.to_thread(_head, blobs, digest)
    data = b""
    async with contextlib.aclosing(exchange.relay(digest, 0)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > MOST_PROMPT:
                break
    return data


def _head(blobs: BlobStore, digest: str) -> bytes:
    with blobs.path(digest).open("rb") as file:
        return file.read(MOST_PROMPT + 1)

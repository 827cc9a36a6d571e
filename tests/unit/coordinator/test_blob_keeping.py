"""Which blobs a coordinator keeps, and how long it waits for one that somebody sends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from aimesh.artifacts.v1 import artifacts_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.api import artifacts
from coordinator.blob_exchange import BlobExchange, blobs_of, holders, node_address
from coordinator.state import State
from meshkit.blobs import BlobStore
from meshkit.errors import DeadlineError


def version(digest: str, chunks: str = "") -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(files=[registry_pb2.ModelFile(path="w", digest=digest, chunks=chunks)])


def test_chunk_lists_are_kept_as_long_as_their_files() -> None:
    first, second = version("a", "la"), version("b")
    assert blobs_of([first, second]) == {"a", "la", "b"}
    before = State(versions={("m", "1"): first, ("m", "2"): second})
    now = State(versions={("m", "2"): second})
    assert artifacts.unused(before, now) == {"a", "la"}
    assert artifacts.unused(before, State(versions={("m", "2"): second, ("n", "1"): first})) == set()


def test_who_can_give_a_blob() -> None:
    def node(node_id: str, port: int, state: membership_pb2.NodeState.ValueType, *blobs: str) -> membership_pb2.Node:
        report = membership_pb2.ModelReport(blobs=blobs)
        return membership_pb2.Node(id=node_id, address="10.0.0.1", port=port, state=state, report=report)

    ready, suspect = membership_pb2.NODE_STATE_READY, membership_pb2.NODE_STATE_SUSPECT
    nodes = [node("a", 1, ready, "d"), node("b", 0, ready, "d"), node("c", 3, suspect, "d"), node("e", 4, ready)]
    assert holders(State(nodes={each.id: each for each in nodes}), "d") == ["10.0.0.1:1"]
    assert node_address(membership_pb2.Node(address="fd00::1", port=5, state=ready)) == "[fd00::1]:5"


async def test_nobody_fills_the_disk_of_a_coordinator_that_asks_for_a_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, blobs = b"weights", BlobStore(tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    recorded = registry_pb2.ModelVersion(files=[registry_pb2.ModelFile(path="w", digest=digest, size=len(content))])
    mirror = SimpleNamespace(state=State(versions={("m", "1"): recorded}))
    exchange = BlobExchange(blobs, mirror, SimpleNamespace(addresses=lambda: ["endless", "good"]), "c1")  # type: ignore[arg-type]

    async def download(address: str, *_: object, **__: object) -> AsyncIterator[bytes]:
        yield content
        while address == "endless":
            yield content

    monkeypatch.setattr(exchange, "_download", download)
    assert await exchange._fetch(digest)
    assert blobs.held() == {digest}


async def test_an_upload_that_nobody_continues_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "UPLOAD_SILENCE_S", 0.05)

    async def sent() -> AsyncIterator[artifacts_pb2.UploadBlobRequest]:
        yield artifacts_pb2.UploadBlobRequest(digest="d")
        await asyncio.Event().wait()

    paced = artifacts._paced(sent())
    assert (await anext(paced)).digest == "d"
    with pytest.raises(DeadlineError, match="nothing of the upload came"):
        await anext(paced)

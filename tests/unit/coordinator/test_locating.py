"""What LocateChunks looks up of the state, kept up with it."""

from __future__ import annotations

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.api.locating import _Index
from coordinator.blob_exchange import sizes_of
from coordinator.state import State
from meshkit.chunks import CHUNK, DIGEST_BYTES

READY, SUSPECT = membership_pb2.NODE_STATE_READY, membership_pb2.NODE_STATE_SUSPECT


def node(name: str, *blobs: str, port: int = 1, state: int = READY) -> membership_pb2.Node:
    report = membership_pb2.ModelReport(blobs=blobs)
    return membership_pb2.Node(id=name, address="10.0.0.1", port=port, state=state, report=report)  # type: ignore[arg-type]


def test_nodes_come_change_and_go() -> None:
    index, a = _Index(), node("a", "x", "y")
    index.follow(State(nodes={"a": a, "b": node("b", "y", port=2), "old": node("old", "x", port=0)}))
    assert index.addresses == {"a": "10.0.0.1:1", "b": "10.0.0.1:2"}
    assert {digest: sorted(held) for digest, held in index.holders.items()} == {"x": ["a"], "y": ["a", "b"]}
    silent = State(nodes={"a": a, "b": node("b", "y", port=2, state=SUSPECT)})
    index.follow(silent)
    assert (index.addresses, list(index.holders["y"])) == ({"a": "10.0.0.1:1"}, ["a"])
    index.follow(State(nodes={"a": node("a", "z"), "b": node("b", "y", port=2)}))
    assert {digest: sorted(held) for digest, held in index.holders.items()} == {"y": ["b"], "z": ["a"]}
    index.follow(State())
    assert (index.addresses, index.holders, index.sizes) == ({}, {}, {})


def test_the_size_of_a_blob_and_of_its_list() -> None:
    file = registry_pb2.ModelFile(path="w", digest="d", chunks="l", size=3 * CHUNK + 1)
    assert sizes_of([registry_pb2.ModelVersion(files=[file])]) == {"d": 3 * CHUNK + 1, "l": 4 * DIGEST_BYTES}

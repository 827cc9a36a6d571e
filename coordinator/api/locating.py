"""LocateChunks: what the tracker is told and asked by agents, checked against the recorded versions."""

from __future__ import annotations

from collections.abc import Iterable

from aimesh.artifacts.v1 import artifacts_pb2
from coordinator.blob_exchange import BlobExchange, node_address
from coordinator.hello import check_node_id
from coordinator.mirror import Mirror
from coordinator.state import State
from coordinator.tracker import Ask, Nodes, Tracker
from meshkit import chunks
from meshkit.auth import check_speaks_for_node
from meshkit.blobs import checked
from meshkit.errors import InvalidInputError, NotFoundError

MOST_NAMED = 64
"""Chunks that may be wanted, and addresses that may be avoided, in one request."""


class Locating:
    """One coordinator's answers."""

    def __init__(self, mirror: Mirror, exchange: BlobExchange, tracker: Tracker, own_address: str) -> None:
        """`own_address` is where agents reach this coordinator."""
        self._mirror = mirror
        self._exchange = exchange
        self._tracker = tracker
        self._own_address = own_address
        self._index = _Index(State())

    def locate(self, request: artifacts_pb2.LocateChunksRequest) -> artifacts_pb2.LocateChunksResponse:
        """See artifacts.proto. Raises InvalidInputError, PermissionDeniedError, NotFoundError for an unknown blob."""
        check_node_id(request.node_id)
        check_speaks_for_node(request.node_id)
        if max(len(request.wanted), len(request.avoid)) > MOST_NAMED:
            raise InvalidInputError(f"a request names more than {MOST_NAMED} chunks or addresses")
        index = self._at(self._mirror.state)
        size = index.sizes.get(checked(request.digest))
        if size is None:
            raise NotFoundError(f"blob {request.digest} is no version's", hint="its version may have been removed")
        complaint = not request.total and not request.wanted
        if complaint or self._own_address in request.avoid:
            self._exchange.suspect(request.digest)
        if complaint:
            return artifacts_pb2.LocateChunksResponse()
        total = _check_numbers(request, size)
        ask = Ask(request.node_id, tuple(request.wanted), tuple(request.held), frozenset(request.avoid), request.most)
        nodes = Nodes(index.addresses, index.holders.get(request.digest, ()))
        found = self._tracker.locate(request.digest, total, ask, nodes)
        return artifacts_pb2.LocateChunksResponse(
            sources=[artifacts_pb2.ChunkSource(chunk=chunk, address=address) for chunk, address in found.sources],
            others=found.others,
        )

    def _at(self, state: State) -> _Index:
        if self._index.state is not state:
            self._index = _Index(state, self._index)
        return self._index


class _Index:
    """What is looked up of a state, made again only where the state changed: agents ask often."""

    def __init__(self, state: State, before: _Index | None = None) -> None:
        self.state = state
        same = before if before is not None and before.state.versions is state.versions else None
        self.sizes: dict[str, int] = same.sizes if same else _sizes(state)
        same = before if before is not None and before.state.nodes is state.nodes else None
        self.addresses: dict[str, str] = same.addresses if same else _addresses(state)
        self.holders: dict[str, list[str]] = same.holders if same else _holders(state, self.addresses)


def _sizes(state: State) -> dict[str, int]:
    """Bytes of each recorded blob."""
    files = [file for version in state.versions.values() for file in version.files]
    lists = {file.chunks: chunks.list_bytes(file.size) for file in files if file.chunks}
    return {**lists, **{file.digest: file.size for file in files}}


def _addresses(state: State) -> dict[str, str]:
    """host:port of the agents that serve others, by node id."""
    return {node_id: address for node_id, node in state.nodes.items() if (address := node_address(node))}


def _holders(state: State, addresses: Iterable[str]) -> dict[str, list[str]]:
    """Which of these nodes hold each blob whole."""
    found: dict[str, list[str]] = {}
    for node_id in addresses:
        for digest in state.nodes[node_id].report.blobs:
            found.setdefault(digest, []).append(node_id)
    return found


def _check_numbers(request: artifacts_pb2.LocateChunksRequest, size: int) -> int:
    """How many chunks the blob has. Raises InvalidInputError when the request says or names others."""
    total = chunks.count(size)
    if request.total != total:
        raise InvalidInputError(f"blob {request.digest} of {size} bytes has {total} chunks, not {request.total}")
    for number in (*request.wanted, *request.held):
        if number >= total:
            raise InvalidInputError(f"blob {request.digest} has {total} chunks: there is no chunk {number}")
    return total

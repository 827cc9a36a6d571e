"""LocateChunks: what the tracker is told and asked by agents, checked against the recorded versions."""

from __future__ import annotations

import random

from aimesh.artifacts.v1 import artifacts_pb2
from aimesh.membership.v1 import membership_pb2
from coordinator.blob_exchange import BlobExchange, node_address, sizes_of
from coordinator.hello import check_node_id
from coordinator.mirror import Mirror
from coordinator.state import State
from coordinator.tracker import Ask, Nodes, Tracker
from coordinator.training import blobs as training_blobs
from meshkit import chunks
from meshkit.auth import check_speaks_for_node
from meshkit.blobs import checked
from meshkit.errors import InvalidInputError, NotFoundError

MOST_NAMED = 64
"""Chunks that may be wanted, and addresses that may be avoided, in one request."""
MOST_OTHERS = 8
"""Agents named in one answer about a blob that is no version's."""


class Locating:
    """One coordinator's answers."""

    def __init__(self, mirror: Mirror, exchange: BlobExchange, tracker: Tracker, own_address: str) -> None:
        """`own_address` is where agents reach this coordinator."""
        self._mirror = mirror
        self._exchange = exchange
        self._tracker = tracker
        self._own_address = own_address
        self._index = _Index()
        self._rng = random.Random()  # noqa: S311  # no secret

    def locate(self, request: artifacts_pb2.LocateChunksRequest) -> artifacts_pb2.LocateChunksResponse:
        """See artifacts.proto. Raises InvalidInputError, PermissionDeniedError, NotFoundError for an unknown blob."""
        check_node_id(request.node_id)
        check_speaks_for_node(request.node_id)
        if max(len(request.wanted), len(request.avoid)) > MOST_NAMED:
            raise InvalidInputError(f"a request names more than {MOST_NAMED} chunks or addresses")
        index = self._index
        index.follow(self._mirror.state)
        size = index.sizes.get(checked(request.digest))
        if size is None:
            return self._held_by_nodes(request)
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

    def _held_by_nodes(self, request: artifacts_pb2.LocateChunksRequest) -> artifacts_pb2.LocateChunksResponse:
        """A blob that is no version's, as a checkpoint of a training job: each node that reports it has all of it."""
        holders = self._index.holders.get(request.digest, {}).keys() - {request.node_id}
        addresses = {self._index.addresses[node] for node in holders} - set(request.avoid)
        if not addresses:
            raise NotFoundError(f"blob {request.digest} is no version's", hint="its version may have been removed")
        others = self._rng.sample(sorted(addresses), min(len(addresses), MOST_OTHERS))
        sources = [artifacts_pb2.ChunkSource(chunk=chunk, address=self._rng.choice(others)) for chunk in request.wanted]
        return artifacts_pb2.LocateChunksResponse(sources=sources[: request.most or None], others=others)


class _Index:
    """What is looked up of a state, kept up with it: agents ask often, and some node of a large mesh changes all the
    time."""

    def __init__(self) -> None:
        self._state = State()
        self.sizes: dict[str, int] = {}
        """Bytes of each recorded blob."""
        self.addresses: dict[str, str] = {}
        """host:port of the agents that serve others, by node id."""
        self.holders: dict[str, dict[str, None]] = {}
        """By digest, ids of those that report the blob whole."""

    def follow(self, state: State) -> None:
        """Looks at what differs from the state before."""
        before, self._state = self._state, state
        if state.versions is not before.versions or state.jobs is not before.jobs:
            self.sizes = {**training_blobs.sizes(state.jobs.values()), **sizes_of(state.versions.values())}
        if state.nodes is before.nodes:
            return
        for node_id in before.nodes.keys() | state.nodes.keys():
            was, now = before.nodes.get(node_id), state.nodes.get(node_id)
            if was is not now:
                self._change(node_id, was, now)

    def _change(self, node_id: str, was: membership_pb2.Node | None, now: membership_pb2.Node | None) -> None:
        address = node_address(now) if now is not None else ""
        held = set(was.report.blobs) if was is not None and node_id in self.addresses else set[str]()
        holds = set(now.report.blobs) if now is not None and address else set[str]()
        self.addresses.pop(node_id, None)
        if address:
            self.addresses[node_id] = address
        for digest in held - holds:
            self.holders[digest].pop(node_id)
            if not self.holders[digest]:
                del self.holders[digest]
        for digest in holds - held:
            self.holders.setdefault(digest, {})[node_id] = None


def _check_numbers(request: artifacts_pb2.LocateChunksRequest, size: int) -> int:
    """How many chunks the blob has. Raises InvalidInputError when the request says or names others."""
    total = chunks.count(size)
    if request.total != total:
        raise InvalidInputError(f"blob {request.digest} of {size} bytes has {total} chunks, not {request.total}")
    for number in (*request.wanted, *request.held):
        if number >= total:
            raise InvalidInputError(f"blob {request.digest} has {total} chunks: there is no chunk {number}")
    return total

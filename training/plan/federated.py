"""Which node speaks for which clients of a federated job."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from meshkit.errors import InvalidInputError
from training.plan.shares import split


def clients_of(clients: int, nodes: int, per_node: int = 1) -> list[range]:
    """The clients of each node by rank: every client once, as even as can be, at most `per_node` on a node.

    `clients` 0 means as many as the nodes may have. Raises InvalidInputError when they are too many for the nodes,
    or fewer than the nodes.
    """
    if nodes < 1 or per_node < 1 or clients < 0:
        raise InvalidInputError(f"{clients} clients on {nodes} nodes with {per_node} a node cannot be")
    count = clients or nodes * per_node
    if count > nodes * per_node:
        raise InvalidInputError(
            f"{count} clients are more than {nodes} nodes with {per_node} each can have",
            hint=f"ask for {nodes * per_node} clients, or raise clients_per_node to {-(-count // nodes)}",
            reason="TOO_MANY_CLIENTS",
        )
    if count < nodes:
        raise InvalidInputError(f"{count} clients leave some of {nodes} nodes without one", hint="use fewer workers")
    return [range(first, last) for first, last in pairwise(accumulate(split(count, [1] * nodes), initial=0))]


def node_of(client: int, clients: Sequence[range]) -> int:
    """The rank that speaks for a client. Raises InvalidInputError for one that nobody has."""
    for rank, mine in enumerate(clients):
        if client in mine:
            return rank
    raise InvalidInputError(f"client {client} is not one of the {sum(map(len, clients))} of this job")

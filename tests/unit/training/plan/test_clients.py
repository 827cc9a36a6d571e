"""Clients of a federated job: each on one node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from training.plan.federated import clients_of, node_of


@given(st.data(), st.integers(1, 20), st.integers(1, 5))
def test_every_client_is_on_one_node(data: st.DataObject, nodes: int, per_node: int) -> None:
    clients = data.draw(st.one_of(st.just(0), st.integers(nodes, nodes * per_node)))
    found = clients_of(clients, nodes, per_node)
    assert [client for mine in found for client in mine] == list(range(clients or nodes * per_node))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert max(map(len, found)) <= per_node
    assert all(client in found[node_of(client, found)] for mine in found for client in mine)


def test_too_many_clients_say_what_to_raise() -> None:
    with pytest.raises(InvalidInputError, match="clients_per_node to 4") as caught:
        clients_of(10, 3, 2)
    assert caught.value.reason == "TOO_MANY_CLIENTS"


@pytest.mark.parametrize(("clients", "nodes", "per_node"), [(1, 2, 1), (1, 0, 1), (-1, 1, 1)])
def test_what_cannot_be_is_refused(clients: int, nodes: int, per_node: int) -> None:
    with pytest.raises(InvalidInputError):
        clients_of(clients, nodes, per_node)


def test_a_client_that_nobody_has() -> None:
    with pytest.raises(InvalidInputError, match="client 5"):
        node_of(5, clients_of(0, 2, 2))

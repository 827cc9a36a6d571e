"""What one node finds out of the network by itself."""

from __future__ import annotations

import socket

from aimesh.training.v1 import training_pb2
from training.strategy.model import LATENCY_S
from training.strategy.network import measured_link, network_to, round_trip_s


def test_a_round_trip_is_measured_where_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        port = server.getsockname()[1]
        assert 0 < round_trip_s("127.0.0.1", port) < 0.5
        found, words = network_to([training_pb2.Worker(address="127.0.0.1", agent_port=port)])
    assert 0 < found.latency_s < 0.5
    assert found.bandwidth > 0
    assert words.startswith("connections measured to 1 nodes, ")
    assert "; measured on this machine " in words
    assert round_trip_s("127.0.0.1", port) == 0, "nobody listens there any more"


def test_what_cannot_be_measured_is_assumed() -> None:
    found, words = network_to([training_pb2.Worker(address="10.0.0.1"), training_pb2.Worker(address="10.0.0.2")])
    assert found.latency_s == LATENCY_S
    assert found.bandwidth > 0
    assert words.startswith("connections assumed")


def test_what_workers_have_measured_counts_and_of_their_kind_only() -> None:
    here = training_pb2.Link(bandwidth=1.5e8, latency_s=3e-4, workers=3)
    away = training_pb2.Link(bandwidth=1e7, latency_s=5e-3, workers=2, between_machines=True)
    one = [training_pb2.Worker(address="10.0.0.1")] * 2
    two = [*one, training_pb2.Worker(address="10.0.0.2")]
    found, words = network_to(one, [here, away])
    assert (found.bandwidth, found.latency_s, found.round_trip_s) == (1.5e8, 3e-4, LATENCY_S)
    assert words == "connections assumed, 0.5 ms; measured between 3 workers 1.2 Gb/s, 0.3 ms"
    assert network_to(two, [here, away])[0].bandwidth == 1e7
    assert measured_link([here, away], between_machines=True, gpu=True) is None
    assert network_to([], [here])[0].bandwidth != 1.5e8, "nodes that nobody has seen are several machines"

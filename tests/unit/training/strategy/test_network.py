"""What one node finds out of the network by itself."""

from __future__ import annotations

import socket

from aimesh.training.v1 import training_pb2
from training.strategy.model import LATENCY_S
from training.strategy.network import network_to, round_trip_s


def test_a_round_trip_is_measured_where_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        port = server.getsockname()[1]
        assert 0 < round_trip_s("127.0.0.1", port) < 0.5
        found, words = network_to([training_pb2.Worker(address="127.0.0.1", agent_port=port)])
    assert 0 < found.latency_s < 0.5
    assert found.bandwidth > 0
    assert words == "round trip measured to 1 nodes, bandwidth measured on this machine"
    assert round_trip_s("127.0.0.1", port) == 0, "nobody listens there any more"


def test_what_cannot_be_measured_is_assumed() -> None:
    found, words = network_to([training_pb2.Worker(address="10.0.0.1"), training_pb2.Worker(address="10.0.0.2")])
    assert found.latency_s == LATENCY_S
    assert found.bandwidth > 0
    assert words.startswith("round trip assumed")

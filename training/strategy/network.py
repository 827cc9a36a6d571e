"""How fast the network between the nodes is: measured as far as one node can by itself, else assumed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from statistics import median

import psutil

from aimesh.training.v1 import training_pb2
from training.strategy.model import BANDWIDTH, LATENCY_S, Network

_CONNECT_S = 0.5
_TRIES = 3
_MOST_ASKED = 8
_LOOPBACK_BYTES = 32 << 20
_LOOPBACK_S = 10.0
_MBIT = 1e6 / 8


def network_to(
    nodes: Sequence[training_pb2.Worker], links: Sequence[training_pb2.Link] = (), *, gpu: bool = False
) -> tuple[Network, str]:
    """The network to these nodes, and for people where its figures are from.

    What a job's workers have measured between each other counts (`links`: of those on one machine, or on several, and
    for tensors on a GPU or not). Until one has: the bandwidth is that of a transfer to itself when all nodes are this
    machine, else the slowest speed that an interface of this machine says it has; and messages take as long as a round
    trip. That is the median time of a TCP connection to an agent's own server, of eight agents at most, of which the
    slowest counts.
    """
    asked = [node for node in nodes if node.agent_port][:_MOST_ASKED]
    trips = [trip for node in asked if (trip := round_trip_s(node.address, node.agent_port))]
    trip_s = max(trips, default=LATENCY_S)
    alone = bool(nodes) and len({node.address for node in nodes}) == 1
    words = f"connections {f'measured to {len(trips)} nodes' if trips else 'assumed'}, {_ms(trip_s)}"
    if (link := measured_link(links, between_machines=not alone, gpu=gpu)) is not None:
        said = f"measured between {link.workers} workers {_gbit(link.bandwidth)}, {_ms(link.latency_s)}"
        return Network(link.bandwidth, link.latency_s, trip_s), f"{words}; {said}"
    if alone:
        bandwidth = loopback_bandwidth()
        return Network(bandwidth, trip_s), f"{words}; measured on this machine {_gbit(bandwidth)}"
    if bandwidth := interface_bandwidth():
        return Network(bandwidth, trip_s), f"{words}; interface's {_gbit(bandwidth)}"
    return Network(BANDWIDTH, trip_s), f"{words}; assumed {_gbit(BANDWIDTH)}"


def measured_link(links: Sequence[training_pb2.Link], *, between_machines: bool, gpu: bool) -> training_pb2.Link | None:
    """What workers that lie like this have measured; None when none has."""
    kind = between_machines, gpu
    return next((one for one in links if (one.between_machines, one.gpu) == kind and one.bandwidth > 0), None)


def _gbit(bandwidth: float) -> str:
    return f"{bandwidth * 8 / 1e9:.2g} Gb/s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms"


def round_trip_s(address: str, port: int) -> float:
    """Seconds of a TCP connection, the median of three; 0 when it cannot be had."""
    taken = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        try:
            socket.create_connection((address, port), timeout=_CONNECT_S).close()
        except OSError:
            return 0.0
        taken.append(time.perf_counter() - began)
    return median(taken)


def interface_bandwidth() -> float:
    """Bytes a second of the slowest interface that is up and says its speed; 0 when none does."""
    speeds = [one.speed for name, one in psutil.net_if_stats().items() if one.isup and one.speed > 0 and name != "lo"]
    return min(speeds, default=0) * _MBIT


def loopback_bandwidth() -> float:
    """Bytes a second of one TCP connection of this machine to itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_LOOPBACK_S)
        sender = threading.Thread(target=_send, args=(server.getsockname(),), daemon=True)
        sender.start()
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_LOOPBACK_S)
            began, received = time.perf_counter(), 0
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
            taken = time.perf_counter() - began
        sender.join()
    return received / taken


def _send(address: tuple[str, int]) -> None:
    block = bytes(1 << 20)
    with socket.create_connection(address, timeout=_LOOPBACK_S) as connection:
        for _ in range(_LOOPBACK_BYTES // len(block)):
            connection.sendall(block)

"""Classes of models, data, nodes and networks, and what a model needs by its class alone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

GIB = 1 << 30
SIZES = ("small", "medium", "large", "xlarge")
DATA = ("small", "medium", "large")
NODES = ("2", "5", "10", "more")
LATENCIES = ("fast", "moderate", "slow")
_PARAMETERS = (10**6, 10**8, 10**9)
_SAMPLES = (10**4, 10**5)
_MOST_NODES = (2, 5, 10)
_ROUND_TRIP_S = (1e-3, 1e-2)


class Default(NamedTuple):
    """What a worker needs by its model's class."""

    cpu_cores: float
    memory_bytes: int
    gpu_memory_bytes: int
    """When it has a GPU."""


_DEFAULTS = {
    "small": Default(2, 4 * GIB, 2 * GIB),
    "medium": Default(4, 16 * GIB, 8 * GIB),
    "large": Default(8, 32 * GIB, 16 * GIB),
    "xlarge": Default(16, 64 * GIB, 32 * GIB),
}


def size_class(parameters: int) -> str:
    """small below 1e6 parameters, medium below 1e8, large below 1e9, then xlarge."""
    return SIZES[bisect_right(_PARAMETERS, parameters)]


def data_class(samples: int) -> str:
    """small below 1e4 samples, medium below 1e5, then large."""
    return DATA[bisect_right(_SAMPLES, samples)]


def nodes_class(nodes: int) -> str:
    """ "2" up to 2 nodes, "5" up to 5, "10" up to 10, then "more"."""
    return NODES[bisect_left(_MOST_NODES, nodes)]


def latency_class(round_trip_s: float) -> str:
    """fast below 1 ms a round trip (a rack), moderate below 10 ms (a site), then slow."""
    return LATENCIES[bisect_right(_ROUND_TRIP_S, round_trip_s)]


def situation(parameters: int, samples: int, nodes: int, round_trip_s: float) -> str:
    """The row of the chooser's table: classes of model, data, nodes and latency, as "medium/small/2/fast"."""
    classes = (size_class(parameters), data_class(samples), nodes_class(nodes), latency_class(round_trip_s))
    return "/".join(classes)


def default_needs(size: str, family: str) -> Default:
    """What a worker needs of a model of which only class and family are known.

    Transformers take 1.5 times the memory and 8 GiB of GPU memory at least, convolutional nets 4 GiB at least.
    """
    needs = _DEFAULTS[size]
    if family == "transformer":
        return Default(needs.cpu_cores, needs.memory_bytes * 3 // 2, max(needs.gpu_memory_bytes, 8 * GIB))
    if family == "convolutional":
        return needs._replace(gpu_memory_bytes=max(needs.gpu_memory_bytes, 4 * GIB))
    return needs

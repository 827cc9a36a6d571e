"""What the cost model is given: the work, the nodes and the network; and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training.plan.tensor import Pair

BASE_BYTES = 512 << 20
"""What a worker takes whose model and data are next to nothing: 424 MiB measured at its peak, with torch 2.13 on Linux,
digits of scikit-learn, gloo, a checkpoint and the export; rounded up."""
GPU_BASE_BYTES = 500 << 20
"""The same on the GPU: CUDA's context and kernels, rounded up."""
BACKWARD = 2.0
"""The way back costs twice the way forward: Kaplan et al., "Scaling laws for neural language models", 2020, 2.1."""
CPU_FLOPS = 1e10
GPU_FLOPS = 1e13
"""Operations a second of one worker where none were measured: a core or two at FP32, and a data centre GPU at a third
of its FP32 peak."""
LOOP_S = 5e-4
"""What a worker's loop takes beside the step itself: the batch, the sums, the event."""
OVERHEAD_S = 1e-3
BANDWIDTH = 1.25e8
LATENCY_S = 5e-4
"""What is assumed where nothing was measured: 1 Gbit/s, and half a millisecond a round trip."""


@dataclass(frozen=True)
class Machine:
    """A node that could take a worker."""

    speed: float = 1.0
    """Relative to the others."""
    memory_bytes: int = 0
    """Free for a worker; 0 when unknown."""
    gpu_memory_bytes: int = 0
    """Of its smallest GPU; 0 when unknown."""


@dataclass(frozen=True)
class Network:
    """What lies between two nodes: the alpha-beta model of Hockney, "The communication challenge for MPP", 1994."""

    bandwidth: float = BANDWIDTH
    """Bytes a second, each way."""
    latency_s: float = LATENCY_S
    """Of a round trip as a job's messages see it, software and all; a message one way takes half."""
    connect_s: float = 0.0
    """Of a round trip of the network itself; 0 where only `latency_s` is known."""

    @property
    def round_trip_s(self) -> float:
        """By which a network is classed: how far apart the nodes are, not how busy."""
        return self.connect_s or self.latency_s

    def message_s(self, count: float) -> float:
        """Seconds for one message of so many bytes."""
        return self.latency_s / 2 + count / self.bandwidth


@dataclass(frozen=True)
class Part:
    """A part of a model between two places at which it may be cut."""

    flops: float
    """Of one sample, forward."""
    parameter_bytes: float
    output_bytes: float
    """Of one sample."""


@dataclass(frozen=True)
class Rounds:
    """What a federated job does between two exchanges."""

    local_epochs: int = 1
    fraction: float = 1.0
    """Of the clients that take part in a round."""


@dataclass(frozen=True)
class Work:
    """What there is to do."""

    flops: float
    """Of one sample, forward."""
    parameter_bytes: float
    activation_bytes: float
    """Of one sample, kept for the way back."""
    batch: int
    """Samples of one step, over all workers."""
    samples: int
    parts: Sequence[Part] = ()
    """Empty when it cannot be cut."""
    pairs: Sequence[Pair] = ()
    """Layers that can be shared out within themselves."""
    places: float = 1.0
    """How often a sample goes through each of those: once, or once a token."""
    pairs_bytes: float = 0
    """Bytes of all parameters of those layers, at the precision that they have."""
    units: int = 1
    """Into how many pieces FSDP cuts the parameters, each gathered by itself."""
    unit_bytes: float = 0
    """Bytes of the largest of them."""
    optimizer_slots: float = 2
    """Numbers that the optimizer keeps for each parameter: 2 of Adam's."""
    base_bytes: int = BASE_BYTES
    """What a worker takes before it has the model: its libraries and its data."""
    refused: Mapping[int, str] | None = None
    """Strategies that the job itself rules out, with the reason."""
    rounds: Rounds | None = None
    """Set of a job whose data may not leave its nodes."""
    gpu: bool = False


@dataclass(frozen=True)
class Basis:
    """How fast it goes."""

    flops_per_s: float = CPU_FLOPS
    """Of a worker of speed 1."""
    overhead_s: float = OVERHEAD_S
    """Of a step, whatever its batch."""
    network: Network = field(default_factory=Network)
    source: str = "all assumed"


@dataclass(frozen=True)
class Estimate:
    """What a strategy would cost with so many workers."""

    strategy: int
    workers: int
    compute_s: float = 0
    network_s: float = 0
    """Beyond what is hidden behind the computing."""
    idle_s: float = 0
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    refused: str = ""
    """Why it cannot be used; empty when it can."""

    @property
    def step_s(self) -> float:
        """Seconds of a step, or of a round."""
        return self.compute_s + self.network_s + self.idle_s

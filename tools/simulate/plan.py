"""What is simulated, as values: sizes, names, what each node has, which client wants which model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import InvalidInputError

GIB = 1024**3
MODEL_BYTES = GIB
"""Host and GPU memory that each simulated model asks for."""
VERSION = "1.0.0"
HUB = 0
"""Index of the node that has room for a replica of every model, so that one report of its concerns every client."""
DEAD_PORT = 1
"""Where nobody listens: a simulated node has no Triton, and its host refuses connections."""
_LIMITS = {
    "nodes": (2, 5_000),
    "models": (1, 1_000),
    "clients": (1, 5_000),
    "coordinators": (1, 50),
    "duration_s": (1.0, 3_600.0),
    "churn": (0.0, 100.0),
    "idle_s": (1.0, 600.0),
}
_ETCD_MEMBERS = (1, 3, 5)
_REPLICAS = 3
_NODES_OF_ONE_BLOCK = 250


@dataclass(frozen=True)
class Plan:
    """One run. Raises InvalidInputError when a number makes no sense."""

    nodes: int
    models: int
    clients: int
    coordinators: int
    etcd: int = 1
    """Members of etcd."""
    duration_s: float = 30.0
    """How long nodes and deployments change, in seconds."""
    churn: float = 2.0
    """Changes a second in that time."""
    idle_s: float = 10.0
    """How long nothing but heartbeats is watched, in seconds."""
    seed: int = 1
    """Of the choice of what changes."""

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                option = name.removesuffix("_s")
                raise InvalidInputError(f"--{option} {value:g}: must be {least:g} to {most:g}")
        if self.etcd not in _ETCD_MEMBERS:
            raise InvalidInputError(f"--etcd {self.etcd}: must be one of {', '.join(map(str, _ETCD_MEMBERS))}")

    @property
    def replicas(self) -> int:
        """Replicas of each model, which leaves a node for one more."""
        return min(_REPLICAS, self.nodes - 1)

    def node_id(self, index: int) -> str:
        """The id of a node, by index from 0."""
        return f"sim-{index:04d}"

    def model(self, index: int) -> str:
        """The name of a model, by index from 0."""
        return f"sim-model-{index:03d}"

    def wanted_by(self, client: int) -> str:
        """The model that a client calls."""
        return self.model(client % self.models)

    def shrunk(self, share: float) -> Plan:
        """The same with fewer nodes, models and clients, in proportion; at least as many as make sense."""
        return replace(
            self,
            nodes=max(2, round(self.nodes * share)),
            models=max(1, round(self.models * share)),
            clients=max(1, round(self.clients * share)),
        )


def growth(plan: Plan) -> tuple[Plan, ...]:
    """The plan at a hundredth, at a tenth and in full: 10, 100 and 1,000 nodes."""
    return plan.shrunk(0.01), plan.shrunk(0.1), plan


def hello(plan: Plan, index: int) -> membership_pb2.Hello:
    """What a node says of itself when it joins, its Triton ready and nothing loaded."""
    room = 64 * GIB + (plan.models * MODEL_BYTES if index == HUB else 0)
    return membership_pb2.Hello(
        node_id=plan.node_id(index),
        instance_id=f"instance-{index}",
        agent_version="simulated",
        address=_address(index),
        pid=1,
        capacity=membership_pb2.Capacity(
            cpu_cores=64,
            memory_bytes=2 * room,
            disk_bytes=1024 * GIB,
            gpus=[
                membership_pb2.Gpu(index=gpu, uuid=f"GPU-{index}-{gpu}", name="simulated", memory_bytes=room)
                for gpu in range(4)
            ],
        ),
        labels={"rack": str(index // 40)},
        report=membership_pb2.ModelReport(triton=triton(ready=True)),
    )


def triton(*, ready: bool) -> membership_pb2.Triton:
    """A node's Triton as its agent reports it."""
    return membership_pb2.Triton(
        state=membership_pb2.TRITON_STATE_READY if ready else membership_pb2.TRITON_STATE_STARTING,
        grpc_port=DEAD_PORT,
        http_port=DEAD_PORT + 1,
        metrics_port=DEAD_PORT + 2,
        version="simulated",
    )


def watchers(plan: Plan) -> Mapping[str, tuple[int, ...]]:
    """The clients of each model that has any, by name."""
    found: dict[str, list[int]] = {}
    for client in range(plan.clients):
        found.setdefault(plan.wanted_by(client), []).append(client)
    return {name: tuple(clients) for name, clients in found.items()}


def _address(index: int) -> str:
    """A loopback address of the node's own."""
    block, host = divmod(index, _NODES_OF_ONE_BLOCK)
    return f"127.1.{block}.{host + 1}"

"""The compiled configuration: named resources, each serialized once and shared by every client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from envoy.config.core.v3 import config_source_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message

CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
EDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
RDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

SHORT_NAMES: Mapping[str, str] = {LDS: "lds", RDS: "rds", CDS: "cds", EDS: "eds"}
"""What people call the types, by type URL."""

Resources = Mapping[str, bytes]
"""Resources of one type: name -> google.protobuf.Any, serialized."""


class OnDemand(Mapping[str, bytes]):
    """Resources that are made when they are first asked for: what no client watches costs nothing."""

    def __init__(self, makers: Mapping[str, Callable[[], bytes]]) -> None:
        """`makers` give the resources, by name; each is called at most once."""
        self._makers = makers
        self._made: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers


@dataclass(frozen=True)
class Snapshot:
    """Everything that any client may ask for, at one etcd revision."""

    version: str
    """The etcd revision, in decimal."""
    resources: Mapping[str, Resources]
    """By type URL; all four types are there."""
    gateways: Snapshot | None = None
    """What gateways get instead, where the two kinds of clients read the contract in different ways."""

    def view(self, *, gateway: bool) -> Snapshot:
        """What a gateway gets, or what a gRPC program gets."""
        return self.gateways if gateway and self.gateways is not None else self


def pack(message: Message) -> bytes:
    """The message as a serialized Any; the same message always gives the same bytes."""
    value = message.SerializeToString(deterministic=True)
    return any_pb2.Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=value).SerializeToString()


def packed_any(message: Message) -> any_pb2.Any:
    """The message in an Any, its maps in a fixed order."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def over_ads() -> config_source_pb2.ConfigSource:
    """Says that a resource comes over the same ADS stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.ApiVersion.V3
    )

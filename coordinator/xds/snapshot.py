"""The compiled configuration: named resources, each serialized once and shared by every client."""

from __future__ import annotations

from collections.abc import Mapping
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

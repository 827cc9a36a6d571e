"""The [coordinator] table."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass


def _ip_and_port(text: str) -> str:
    """Routes carry no host names, so the gateway could not reach a coordinator by one."""
    if text:
        host, _, port = text.rpartition(":")
        ipaddress.ip_address(host.strip("[]"))
        if not port.isdigit():
            raise ValueError(f"{text!r} must be IP:port")
    return text


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class EtcdSettings:
    """The [coordinator.etcd] table."""

    endpoints: tuple[str, ...] = field(
        default=("127.0.0.1:2379",), metadata={"doc": "host:port of etcd's members; the next is tried when one fails"}
    )
    ca: Path | None = field(default=None, metadata={"doc": "PEM file of the authority that signed etcd's certificate"})
    cert: Path | None = field(default=None, metadata={"doc": "PEM file of this coordinator's client certificate"})
    key: Path | None = field(default=None, metadata={"doc": "PEM file of that certificate's key"})
    username: str = field(default="", metadata={"doc": "etcd user, when etcd has authentication on"})
    password: str = field(default="", metadata={"doc": "that user's password; better set by the environment"})
    timeout_s: Annotated[float, Field(gt=0)] = field(
        default=3.0, metadata={"doc": "seconds before a call to etcd is given up"}
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CoordinatorSettings:
    """The [coordinator] table."""

    data_dir: Path = field(metadata={"doc": "where uploaded blobs are kept"})
    id: str = field(default_factory=socket.gethostname, metadata={"doc": "unique among coordinators; the host name"})
    host: str = field(default="127.0.0.1", metadata={"doc": "address to listen on"})
    port: Annotated[int, Field(ge=0, le=65535)] = field(
        default=8503, metadata={"doc": "the one gRPC port: API, agents and xDS"}
    )
    advertise: Annotated[str, AfterValidator(_ip_and_port)] = field(
        default="",
        metadata={"doc": "IP:port at which agents and clients reach this coordinator; host:port above when empty"},
    )
    heartbeat_interval_s: Annotated[float, Field(gt=0)] = field(
        default=1.0, metadata={"doc": "how often agents report; three missed make a node SUSPECT"}
    )
    node_ttl_s: Annotated[int, Field(ge=2)] = field(
        default=10, metadata={"doc": "seconds of silence after which a node is DEAD and its models move"}
    )
    leader_ttl_s: Annotated[int, Field(ge=2)] = field(
        default=5, metadata={"doc": "seconds after which a dead leader is replaced"}
    )
    drain_s: Annotated[float, Field(ge=0)] = field(
        default=5.0, metadata={"doc": "seconds that calls in flight are given at shutdown"}
    )
    etcd: EtcdSettings = field(default_factory=EtcdSettings, metadata={"doc": "how to reach etcd"})

    @property
    def address(self) -> str:
        """host:port that others use."""
        return self.advertise or f"{self.host}:{self.port}"

"""The [coordinator] table."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from meshkit.tls import TlsSettings


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
class AuthSettings:
    """The [coordinator.auth] table. API keys are demanded where TLS is on; everywhere, one that is shown is checked."""

    key_file: Path | None = field(
        default=None,
        metadata={
            "doc": "PEM file of the key that signs API keys, the same on all coordinators (aimesh ca init); "
            "<data_dir>/api-keys.pem, made on first use, when not set"
        },
    )
    ca_key: Path | None = field(
        default=None,
        metadata={"doc": "PEM file of the authority's key; with it this coordinator gives and renews certificates"},
    )
    certificate_days: Annotated[int, Field(gt=0)] = field(
        default=90, metadata={"doc": "how long the certificates that it gives are valid"}
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AuditSettings:
    """The [coordinator.audit] table."""

    url: str = field(
        default="",
        metadata={
            "doc": "SQLAlchemy URL of the audit log's database, the same on all coordinators; PostgreSQL where there "
            "are several (better set by the environment when it has a password); <data_dir>/audit.sqlite when not set"
        },
    )
    max_backlog: Annotated[int, Field(gt=0)] = field(
        default=10_000, metadata={"doc": "changes are refused when so many events wait because the database is away"}
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ExperimentSettings:
    """The [coordinator.experiments] table."""

    url: str = field(
        default="",
        metadata={
            "doc": "SQLAlchemy URL of the experiments' database, the same on all coordinators; PostgreSQL where there "
            "are several (better set by the environment when it has a password); <data_dir>/experiments.sqlite when "
            "not set"
        },
    )
    one_machine: bool = field(
        default=False,
        metadata={"doc": "all coordinators run on this machine and are given the same SQLite file, which they share"},
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LessonSettings:
    """The [coordinator.training] table."""

    lesson_steps: Annotated[int, Field(ge=1)] = field(
        default=200,
        metadata={
            "doc": "a finished job teaches the strategies' table only when its last attempt made so many steps; the "
            "same on all coordinators"
        },
    )
    lesson_s: Annotated[float, Field(ge=0)] = field(
        default=20.0, metadata={"doc": "and trained for so many seconds; the same on all coordinators"}
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
    enroll_port: Annotated[int, Field(ge=0, le=65535)] = field(
        default=0,
        metadata={"doc": "port where machines with a join token get certificates (needs auth.ca_key); 0 for none"},
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
    brake_share: Annotated[float, Field(gt=0, le=1)] = field(
        default=0.5,
        metadata={
            "doc": "when more than this share of the nodes (and at least two) is silent at once, their routes stay and "
            "nothing is moved; the same on all coordinators"
        },
    )
    scorers_dir: Path | None = field(
        default=None,
        metadata={"doc": "folder of programs that score answers of evaluations, by file name; none when not set"},
    )
    insecure: bool = field(
        default=False,
        metadata={"doc": "listen on other addresses than loopback without TLS; for trusted networks only"},
    )
    etcd: EtcdSettings = field(default_factory=EtcdSettings, metadata={"doc": "how to reach etcd"})
    tls: TlsSettings = field(
        default_factory=TlsSettings, metadata={"doc": "certificates; without them links are plain text"}
    )
    auth: AuthSettings = field(default_factory=AuthSettings, metadata={"doc": "API keys, and giving certificates"})
    audit: AuditSettings = field(default_factory=AuditSettings, metadata={"doc": "the log of who changed what"})
    experiments: ExperimentSettings = field(
        default_factory=ExperimentSettings, metadata={"doc": "where experiments are kept"}
    )
    training: LessonSettings = field(
        default_factory=LessonSettings, metadata={"doc": "which training jobs the choice of strategies learns from"}
    )

    @property
    def address(self) -> str:
        """host:port that others use."""
        return self.advertise or f"{self.host}:{self.port}"

"""The [agent] table."""

from __future__ import annotations

import ipaddress
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from meshkit.tls import TlsSettings, check_binding

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Address = Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$|^\[[0-9a-fA-F:]+\]:[0-9]{1,5}$")]


def _ip(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"must be an IP address, as routes carry no host names; {text!r} is none") from None
    return text


def _rate(value: int) -> int:
    if 0 < value < LEAST_RATE:
        raise ValueError(f"must be 0 (no cap) or at least {LEAST_RATE} bytes a second; {value} is neither")
    return value


LEAST_RATE = 64 * 1024
Rate = Annotated[int, Field(ge=0), AfterValidator(_rate)]
RUNTIMES_DIR = Path(__file__).parents[1] / "inference" / "runtimes"
"""Where the installed project keeps its runtimes' templates."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TritonSettings:
    """The [agent.triton] table."""

    mode: Literal["managed", "external"] = field(
        default="managed",
        metadata={
            "doc": "managed: the agent starts and supervises Triton; external: it uses the one at external_address, "
            "which must run with --model-control-mode=explicit and --model-repository=<data_dir>/repository"
        },
    )
    external_address: Address | None = field(
        default=None, metadata={"doc": "host:port of the external Triton's gRPC service"}
    )
    server: Path | None = field(
        default=None, metadata={"doc": "the tritonserver program; the one in the nvidia-pytriton wheel"}
    )
    backends_dir: Path | None = field(
        default=None, metadata={"doc": "Triton's backends; those in the nvidia-pytriton wheel"}
    )
    listen: str = field(
        default="127.0.0.1",
        metadata={"doc": "address that the managed Triton listens on; any other than loopback needs agent.tls"},
    )
    grpc_port: Port = field(default=8001, metadata={"doc": "Triton's KServe v2 gRPC port"})
    http_port: Port = field(
        default=8000,
        metadata={"doc": "Triton's KServe v2 REST port; on loopback only, and in no route, with agent.tls"},
    )
    metrics_port: Port = field(
        default=8002, metadata={"doc": "Triton's Prometheus port; on loopback only with agent.tls"}
    )
    start_timeout_s: Seconds = field(
        default=60.0, metadata={"doc": "seconds until a starting Triton must be ready, its self-test included"}
    )
    load_timeout_s: Seconds = field(default=600.0, metadata={"doc": "seconds until a model must be loaded"})
    test_timeout_s: Seconds = field(
        default=60.0, metadata={"doc": "seconds until a model's test request must be answered"}
    )
    hang_timeout_s: Seconds = field(
        default=20.0,
        metadata={
            "doc": "seconds without a sign of life after which Triton is killed and started anew; "
            "it leaves the routes after three missed seconds"
        },
    )
    crash_limit: Annotated[int, Field(ge=1)] = field(
        default=5, metadata={"doc": "this many deaths within crash_window_s are a crash loop"}
    )
    crash_window_s: Seconds = field(default=60.0, metadata={"doc": "the time in which deaths are counted, in seconds"})
    crash_pause_s: Seconds = field(
        default=30.0, metadata={"doc": "seconds between tries while Triton is in a crash loop"}
    )
    log_bytes: Annotated[int, Field(ge=4096)] = field(
        default=16 * 1024 * 1024,
        metadata={"doc": "size in bytes at which Triton's log is rotated; one old file is kept"},
    )

    @model_validator(mode="after")
    def _consistent(self) -> TritonSettings:
        if self.mode == "external" and self.external_address is None:
            raise ValueError("mode = 'external' needs external_address = 'host:port'")
        if len({self.grpc_port, self.http_port, self.metrics_port}) < 3:
            raise ValueError(
                f"grpc_port, http_port and metrics_port must differ, and are "
                f"{self.grpc_port}, {self.http_port}, {self.metrics_port}"
            )
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainingSettings:
    """The [agent.training] table."""

    enabled: bool = field(default=True, metadata={"doc": "take workers of training jobs"})
    python: Path | None = field(
        default=None,
        metadata={"doc": "the Python that workers run with, with aimesh and torch in it; the agent's own when not set"},
    )
    interface: str = field(
        default="",
        metadata={"doc": "network interface of the traffic between workers; the one that has `address` when empty"},
    )
    memory_share: Annotated[float, Field(gt=0, le=1)] = field(
        default=0.9, metadata={"doc": "a worker that takes more than this share of the node's memory is ended"}
    )
    nice: Annotated[int, Field(ge=0, le=19)] = field(
        default=10, metadata={"doc": "how far workers stand back behind Triton for the cores: 0 (not at all) to 19"}
    )
    prepare_timeout_s: Seconds = field(
        default=120.0, metadata={"doc": "seconds until the process at which a job's workers meet must listen"}
    )
    stop_grace_s: Seconds = field(
        default=60.0, metadata={"doc": "seconds that a worker is given to write a checkpoint when it is to stop"}
    )
    log_bytes: Annotated[int, Field(ge=4096)] = field(
        default=64 * 1024 * 1024,
        metadata={"doc": "size in bytes at which a worker's log is rotated; one old file is kept"},
    )
    keep_days: Annotated[float, Field(ge=0)] = field(
        default=7.0,
        metadata={"doc": "days that an ended job's logs and checkpoints are kept after its last task on the node"},
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AgentSettings:
    """The [agent] table."""

    node_id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = field(
        metadata={"doc": "unique in the mesh: lower-case letters, digits and '-', at most 63"}
    )
    data_dir: Path = field(metadata={"doc": "where models, Triton's files and the agent's identity are kept"})
    coordinators: Annotated[tuple[Address, ...], Field(min_length=1)] = field(
        default=("127.0.0.1:8503",), metadata={"doc": "host:port of one or more coordinators; others are learned"}
    )
    address: Annotated[str, AfterValidator(_ip)] = field(
        default="127.0.0.1",
        metadata={"doc": "IP address at which clients reach this machine's Triton; a host name is refused"},
    )
    listen: str = field(
        default="",
        metadata={
            "doc": "address that the agent's own server listens on, where other agents fetch what this one has; "
            "`address` when empty"
        },
    )
    port: Annotated[int, Field(ge=0, le=65535)] = field(
        default=0, metadata={"doc": "port of that server; 0 for any free one"}
    )
    fetch_parallel: Annotated[int, Field(ge=1, le=64)] = field(
        default=4, metadata={"doc": "chunks of 8 MiB that are fetched at a time"}
    )
    fetch_bytes_per_second: Rate = field(
        default=0, metadata={"doc": "cap on what is fetched, in bytes a second, at least 65536; 0 for none"}
    )
    serve_bytes_per_second: Rate = field(
        default=0, metadata={"doc": "cap on what other agents fetch from here, in bytes a second; 0 for none"}
    )
    labels: dict[str, str] = field(
        default_factory=dict, metadata={"doc": "labels that models may ask for, as key = 'value'"}
    )
    cpu_cores: Annotated[float, Field(gt=0)] | None = field(
        default=None, metadata={"doc": "cores to report instead of those found, when several agents share a machine"}
    )
    memory_bytes: Annotated[int, Field(gt=0)] | None = field(
        default=None, metadata={"doc": "memory to report instead of what was found, in bytes"}
    )
    disk_bytes: Annotated[int, Field(gt=0)] = field(
        default=50 * 1024**3,
        metadata={"doc": "cap of the model store in bytes; what is not assigned leaves it, least recently used first"},
    )
    drain_s: Annotated[float, Field(ge=0)] = field(
        default=30.0, metadata={"doc": "seconds that requests in flight are given when a model or the agent goes"}
    )
    runtimes_dir: Path = field(
        default=RUNTIMES_DIR, metadata={"doc": "the runtimes' templates: <runtimes_dir>/<runtime>/model.py"}
    )
    insecure: bool = field(
        default=False, metadata={"doc": "allow addresses other than loopback without TLS; for a trusted network only"}
    )
    triton: TritonSettings = field(default_factory=TritonSettings, metadata={"doc": "the inference server"})
    training: TrainingSettings = field(default_factory=TrainingSettings, metadata={"doc": "workers of training jobs"})
    tls: TlsSettings = field(
        default_factory=TlsSettings,
        metadata={"doc": "TLS to coordinators, and Triton's own; plain text when not set"},
    )

    def check_bindings(self) -> None:
        """Raises InvalidInputError when this node would be reached from other machines and nothing would protect it."""
        hosts = {"triton.listen": self.triton.listen, "address": self.address, "listen": self.listen or self.address}
        for key, host in hosts.items():
            check_binding(host, self.tls, insecure=self.insecure, table="agent", key=key)

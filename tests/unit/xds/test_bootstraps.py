"""What gRPC programs and the gateway start with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.grpc_field_extraction.v3 import config_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from coordinator.xds.bootstrap import client_bootstrap
from meshkit.errors import InvalidInputError
from meshkit.settings import load_settings
from tools.gateway import GatewaySettings, bootstrap, command, write_bootstrap

# Their JSON names the types of what is packed in it; parsing needs those loaded.
_PACKED = (
    buffer_pb2,
    cel_pb2,
    config_pb2,
    downstream_connections_pb2,
    file_pb2,
    http_connection_manager_pb2,
    http_protocol_options_pb2,
    lua_pb2,
    router_pb2,
    stream_pb2,
)


def settings(folder: Path, **values: object) -> GatewaySettings:
    return GatewaySettings(**{"data_dir": folder, "coordinators": ("127.0.0.1:8503",), **values})  # type: ignore[arg-type]


def test_coordinators_with_addresses_are_one_target_so_that_the_next_is_taken_when_one_dies() -> None:
    (server,) = client_bootstrap(["10.0.0.1:8503", "10.0.0.2:8503"], "me")["xds_servers"]
    assert server["server_uri"] == "ipv4:10.0.0.1:8503,10.0.0.2:8503"
    assert server["channel_creds"] == [{"type": "insecure"}]


@pytest.mark.parametrize(
    ("coordinators", "uri"),
    [
        (["[fd00::1]:8503", "[fd00::2]:8503"], "ipv6:[fd00::1]:8503,[fd00::2]:8503"),
        (["10.0.0.1:8503", "[fd00::2]:8503"], "ipv6:[::ffff:10.0.0.1]:8503,[fd00::2]:8503"),
    ],
)
def test_addresses_of_ipv6_and_of_both_families_are_one_target_too(coordinators: list[str], uri: str) -> None:
    (server,) = client_bootstrap(coordinators, "me")["xds_servers"]
    assert server["server_uri"] == uri


def test_coordinators_with_names_are_a_list() -> None:
    servers = client_bootstrap(["a:8503", "10.0.0.2:8503"], "me")["xds_servers"]
    assert [server["server_uri"] for server in servers] == ["dns:///a:8503", "dns:///10.0.0.2:8503"]


@pytest.mark.parametrize("coordinators", [("10.0.0.1:8503", "[fd00::1]:8503"), ("a.example:8503",)])
def test_the_gateways_bootstrap_is_what_envoy_expects(tmp_path: Path, coordinators: tuple[str, ...]) -> None:
    path = write_bootstrap(settings(tmp_path / "new", coordinators=coordinators, admin_port=9901))
    document = json.loads(path.read_text())
    parsed = json_format.ParseDict(document, bootstrap_pb2.Bootstrap())
    (cluster,) = parsed.static_resources.clusters
    assert len(cluster.load_assignment.endpoints[0].lb_endpoints) == len(coordinators)
    assert parsed.admin.address.socket_address.address == "127.0.0.1"
    assert list(path.parent.iterdir()) == [path]
    assert _PACKED


def test_without_an_admin_port_there_is_no_admin_page(tmp_path: Path) -> None:
    assert "admin" not in bootstrap(settings(tmp_path))


@pytest.mark.parametrize(("log", "kind"), [("-", "StdoutAccessLog"), ("/var/log/access.json", "FileAccessLog")])
def test_the_access_log_goes_where_the_settings_say(tmp_path: Path, log: str, kind: str) -> None:
    assert f".{kind}" in json.dumps(bootstrap(settings(tmp_path, access_log=log)))


def test_every_call_that_names_a_model_has_its_name_read(tmp_path: Path) -> None:
    text = json.dumps(bootstrap(settings(tmp_path)))
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in service.methods:
        if method.name.startswith("Model"):
            field = "model_name" if "model_name" in method.input_type.fields_by_name else "name"
            assert f'"{service.full_name}.{method.name}": {{"request_field_extractions": {{"{field}": {{}}}}}}' in text


def test_the_command_line_says_how_many_threads(tmp_path: Path) -> None:
    assert "--concurrency" not in command(settings(tmp_path), Path("c.json"))
    found = command(settings(tmp_path, concurrency=2, envoy=Path("/opt/envoy")), Path("c.json"))
    assert found[0] == "/opt/envoy"
    assert found[-2:] == ["--concurrency", "2"]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"AIMESH_GATEWAY_DATA_DIR": "/d"}, "gateway.coordinators is required"),
        ({"AIMESH_GATEWAY_DATA_DIR": "/d", "AIMESH_GATEWAY_COORDINATORS": ""}, "gateway.coordinators"),
        ({"AIMESH_GATEWAY_DATA_DIR": "/d", "AIMESH_GATEWAY_COORDINATORS": "no-port"}, "gateway.coordinators"),
        (
            {"AIMESH_GATEWAY_DATA_DIR": "/d", "AIMESH_GATEWAY_COORDINATORS": "a:1", "AIMESH_GATEWAY_PORT": "70000"},
            "gateway.port",
        ),
    ],
)
def test_wrong_settings_are_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_settings(GatewaySettings, "gateway", environ=environ)

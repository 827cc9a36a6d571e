"""mTLS towards the servers behind the routes, and API keys at the gateway, as xDS.

gRPC programs and Envoy read one contract in two ways. gRPC takes certificates from a provider that the program's
bootstrap names, and heeds only the older list of alternative names (gRFC A29); Envoy takes them from files of its own
(SDS), and wants the names with their type. So each kind of client gets clusters of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeVar, get_args

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as rbac_filter_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from google.protobuf import any_pb2

from coordinator.xds.bootstrap import CERTIFICATE_PROVIDER
from coordinator.xds.snapshot import packed_any
from meshkit.tls import Role

Plane = Literal["client", "gateway"]
"""Who is configured: a gRPC program, or Envoy."""
PLANES: tuple[Plane, ...] = get_args(Plane)

IDENTITY_SECRET, AUTHORITY_SECRET = "identity", "authority"
"""Names of the gateway's secrets: its certificate with the key, and the mesh's authority."""
SECRETS_DIR = "tls"
"""Where the gateway's secrets lie, relative to its working directory: <name>.json, files of SDS."""
JWT_FILTER, RBAC_FILTER = "envoy.filters.http.jwt_authn", "envoy.filters.http.rbac"
"""The gateway's filters that read API keys and that hold them against those that live."""
KEY_REQUIREMENT = "api-key"
"""What a route asks of the filter that reads keys."""

FilterConfigs = Mapping[str, any_pb2.Any]
"""What filters are told for one route or all routes of a host, by the filter's name."""
Configurable = TypeVar("Configurable", route_components_pb2.Route, route_components_pb2.VirtualHost)

_TLS = "envoy.transport_sockets.tls"


def secured(clusters: Iterable[cluster_pb2.Cluster], plane: Plane, coordinators: str) -> Iterator[cluster_pb2.Cluster]:
    """The clusters, each calling its servers with mTLS. `coordinators` names the one that leads to coordinators."""
    for cluster in clusters:
        role: Role = "coordinator" if cluster.name == coordinators else "node"
        cluster.transport_socket.CopyFrom(_transport_socket(role, plane))
        yield cluster


@functools.cache
def _transport_socket(role: Role, plane: Plane) -> base_pb2.TransportSocket:
    """Kept, so never changed in place: every cluster has one."""
    socket = gateway_socket(role) if plane == "gateway" else _client_socket(role)
    return base_pb2.TransportSocket(name=_TLS, typed_config=packed_any(socket))


def gateway_socket(role: Role) -> tls_pb2.UpstreamTlsContext:
    """Envoy's end of a link to a server that must hold a certificate of the role."""
    context = tls_pb2.UpstreamTlsContext()
    common = context.common_tls_context
    common.alpn_protocols.append("h2")
    common.tls_certificate_sds_secret_configs.append(secret(IDENTITY_SECRET))
    validation = common.combined_validation_context
    validation.validation_context_sds_secret_config.CopyFrom(secret(AUTHORITY_SECRET))
    names = validation.default_validation_context.match_typed_subject_alt_names
    names.add(san_type=common_pb2.SubjectAltNameMatcher.URI).matcher.prefix = _names_of(role)
    return context


def secret(name: str) -> secret_pb2.SdsSecretConfig:
    """Where Envoy finds a secret: in a file of its own machine, which it reads again when it changes."""
    found = secret_pb2.SdsSecretConfig(name=name)
    found.sds_config.resource_api_version = config_source_pb2.ApiVersion.V3
    found.sds_config.path_config_source.path = f"{SECRETS_DIR}/{name}.json"
    return found


def keys_required(key_ids: Iterable[str]) -> FilterConfigs:
    """Per-filter configuration of routes that take nothing without a live API key."""
    policy = rbac_pb2.Policy(permissions=[rbac_pb2.Permission(any=True)])
    for key_id in sorted(key_ids):
        metadata = policy.principals.add().metadata
        metadata.filter = JWT_FILTER
        metadata.path.add(key="claims")
        metadata.path.add(key="jti")
        metadata.value.string_match.exact = key_id
    if not policy.principals:
        policy.principals.add().not_id.any = True  # nobody: a policy needs a principal
    rules = rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW, policies={"live-keys": policy})
    return {
        JWT_FILTER: packed_any(jwt_pb2.PerRouteConfig(requirement_name=KEY_REQUIREMENT)),
        RBAC_FILTER: packed_any(rbac_filter_pb2.RBACPerRoute(rbac=rbac_filter_pb2.RBAC(rules=rules))),
    }


def keys_left_to_the_server() -> FilterConfigs:
    """Per-filter configuration of routes whose server checks keys itself."""
    return {
        JWT_FILTER: packed_any(jwt_pb2.PerRouteConfig(disabled=True)),
        RBAC_FILTER: packed_any(rbac_filter_pb2.RBACPerRoute()),
    }


def configured(routed: Configurable, filters: FilterConfigs) -> Configurable:
    """The route, or the host with its routes, with the filters told so."""
    for name, config in filters.items():
        routed.typed_per_filter_config[name].CopyFrom(config)
    return routed


def _client_socket(role: Role) -> tls_pb2.UpstreamTlsContext:
    context = tls_pb2.UpstreamTlsContext()
    common = context.common_tls_context
    common.tls_certificate_provider_instance.instance_name = CERTIFICATE_PROVIDER
    common.validation_context.ca_certificate_provider_instance.instance_name = CERTIFICATE_PROVIDER
    common.validation_context.match_subject_alt_names.add(prefix=_names_of(role))
    return context


def _names_of(role: Role) -> str:
    return f"spiffe://aimesh/{role}/"

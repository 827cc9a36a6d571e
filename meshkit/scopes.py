"""What a call needs: each method's scopes, from the contract's own option; a table for the services of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from google.protobuf import descriptor_pool

from aimesh.identity.v1 import scope_pb2
from meshkit.tls import Identity, Role

Scope: TypeAlias = scope_pb2.Scope.ValueType

READ, INFER, DEPLOY, ADMIN = scope_pb2.SCOPE_READ, scope_pb2.SCOPE_INFER, scope_pb2.SCOPE_DEPLOY, scope_pb2.SCOPE_ADMIN
NODE, COORDINATOR, PUBLIC = scope_pb2.SCOPE_NODE, scope_pb2.SCOPE_COORDINATOR, scope_pb2.SCOPE_PUBLIC

KEY_SCOPES: tuple[Scope, ...] = (READ, INFER, DEPLOY, ADMIN)
"""What an API key may be given."""
EVERY_SCOPE: frozenset[Scope] = frozenset((*KEY_SCOPES, NODE, COORDINATOR, PUBLIC))

_HOLDS: dict[Scope, tuple[Scope, ...]] = {ADMIN: (READ, INFER, DEPLOY), DEPLOY: (READ,)}
_OF_ROLE: dict[Role, tuple[Scope, ...]] = {
    "node": (NODE,),
    "coordinator": (COORDINATOR, READ),
    "client": (INFER,),
    "admin": (ADMIN,),
    # A gateway passes users' calls on with its own certificate: if that gave rights, every user would have them.
    "gateway": (),
    "etcd": (),
}


@dataclass(frozen=True)
class Requirement:
    """A caller needs one of the scopes, or a certificate of one of the roles. Nothing in both: nobody may call."""

    scopes: frozenset[Scope] = frozenset()
    roles: frozenset[Role] = frozenset()


_THIRD_PARTY = {
    "grpc.health.v1.Health": Requirement(frozenset({PUBLIC})),
    "grpc.reflection.v1alpha.ServerReflection": Requirement(frozenset({PUBLIC})),
    "grpc.channelz.v1.Channelz": Requirement(frozenset({ADMIN})),
    "envoy.service.discovery.v3.AggregatedDiscoveryService": Requirement(
        frozenset({INFER}), frozenset({"gateway", "node", "coordinator"})
    ),
    "envoy.service.load_stats.v3.LoadReportingService": Requirement(frozenset({COORDINATOR}), frozenset({"gateway"})),
}


def expand(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes with those that they hold."""
    given = frozenset(scopes)
    return given.union(*(_HOLDS.get(scope, ()) for scope in given))


def scopes_of(identity: Identity) -> frozenset[Scope]:
    """What a certificate gives by itself."""
    return expand(_OF_ROLE[identity.role])


@cache
def requirement(method: str) -> Requirement:
    """What a call of `/package.Service/Method` needs; nobody may call a method that declares nothing."""
    service, _, name = method.removeprefix("/").rpartition("/")
    if service in _THIRD_PARTY:
        return _THIRD_PARTY[service]
    try:
        found = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return Requirement()
    return Requirement(frozenset(found.GetOptions().Extensions[scope_pb2.scopes]) - {scope_pb2.SCOPE_UNSPECIFIED})


def word(scope: Scope) -> str:
    """As people write it: "deploy"; a number for one that this version does not know."""
    if scope not in scope_pb2.Scope.values():
        return str(scope)
    return scope_pb2.Scope.Name(scope).removeprefix("SCOPE_").lower()


def words(scopes: Iterable[Scope]) -> list[str]:
    """As people write them, in the order of the contract."""
    return [word(scope) for scope in sorted(scopes)]

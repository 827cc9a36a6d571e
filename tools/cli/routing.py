"""Calls to the routing service: what is deployed, how its requests travel, and changing both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from meshkit.errors import InvalidInputError
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh


@asynccontextmanager
async def routing_service(mesh: Mesh) -> AsyncIterator[routing_pb2_grpc.RoutingServiceAsyncStub]:
    """The service at the first coordinator that answers."""
    async with connect(mesh, "coordinator") as channel:
        yield routing_pb2_grpc.RoutingServiceStub(channel)


async def explain_route(mesh: Mesh, name: str, headers: Mapping[str, str]) -> routing_pb2.ExplainRouteResponse:
    """Where a request would go. Raises NotFoundError."""
    async with routing_service(mesh) as routing:
        request = routing_pb2.ExplainRouteRequest(name=name, headers=headers)
        return await routing.ExplainRoute(request, timeout=CALL_TIMEOUT_S)


async def show_route(mesh: Mesh, name: str) -> tuple[routing_pb2.Deployment, Sequence[routing_pb2.RuleEffect]]:
    """A deployment, and what becomes of its policy. Raises NotFoundError."""
    async with routing_service(mesh) as routing:
        found = await routing.GetDeployment(routing_pb2.GetDeploymentRequest(name=name), timeout=CALL_TIMEOUT_S)
        rules = await routing.ExplainRoute(routing_pb2.ExplainRouteRequest(name=name), timeout=CALL_TIMEOUT_S)
    return found.status.deployment, rules.rules


async def change_route(
    mesh: Mesh, name: str, policy: routing_pb2.RoutePolicy | None, split: Mapping[str, int], replicas: int | None
) -> routing_pb2.ApplyDeploymentResponse:
    """Replaces a deployment's policy (when one is given) and its split (when that is not empty).

    A version that is new in the split gets `replicas`, or as many as the others have at most; one that is not named any
    more is no target any more. Raises NotFoundError, InvalidInputError.
    """
    async with routing_service(mesh) as routing:
        found = await routing.GetDeployment(routing_pb2.GetDeploymentRequest(name=name), timeout=CALL_TIMEOUT_S)
        deployment = found.status.deployment
        if policy is not None:
            deployment.policy.CopyFrom(policy)
        if split:
            targets = split_targets(deployment.targets, split, replicas)
            deployment.ClearField("targets")
            deployment.targets.extend(targets)
        request = routing_pb2.ApplyDeploymentRequest(deployment=deployment)
        return await routing.ApplyDeployment(request, timeout=CALL_TIMEOUT_S)


def split_targets(
    held: Sequence[routing_pb2.Target], split: Mapping[str, int], replicas: int | None
) -> list[routing_pb2.Target]:
    """The targets of a split, each a version or an @alias: replicas as asked, else as it had, else as many as any had.

    A version that is there because of an alias goes on following it.
    """
    had = {target.version: target for target in held} | {f"@{target.alias}": target for target in held if target.alias}
    usual = max((target.replicas for target in held), default=1)
    targets = []
    for named, weight in split.items():
        before = had.get(named, routing_pb2.Target(replicas=usual))
        alias = named[1:] if named.startswith("@") else before.alias
        version = "" if named.startswith("@") else named
        targets.append(
            routing_pb2.Target(version=version, alias=alias, weight=weight, replicas=replicas or before.replicas)
        )
    return targets


def parse_split(texts: Sequence[str]) -> dict[str, int]:
    """['1.0.0=90', '@next=10'] → {'1.0.0': 90, '@next': 10}. Raises InvalidInputError."""
    found: dict[str, int] = {}
    for text in texts:
        version, equals, weight = text.partition("=")
        if not equals or not weight.isdigit() or version in found:
            raise InvalidInputError(
                f"{text!r} is no share of a version", hint="each version once, with a weight: --split 1.0.0=90"
            )
        found[version] = int(weight)
    return found


def parse_headers(texts: Sequence[str]) -> dict[str, str]:
    """['X-Tenant=acme'] → {'x-tenant': 'acme'}. Raises InvalidInputError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInputError(f"{text!r} is no header", hint="for example --header x-tenant=acme")
        found[name.lower()] = value
    return found

"""RoutingService: deployments, and what has become of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from coordinator import keys
from coordinator.api.registry import find_version
from coordinator.api.validate import check_deployment
from coordinator.etcd import Delete, Etcd, Put, Unchanged
from coordinator.mirror import Mirror
from coordinator.paging import page
from coordinator.placement import place, target_status
from coordinator.state import State
from meshkit.errors import NotFoundError, SupersededError


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """Serves aimesh.routing.v1. A write only states what is wanted; the leader's controller carries it out."""

    def __init__(self, etcd: Etcd, mirror: Mirror, absent: Callable[[], tuple[str, ...]]) -> None:
        """`absent` names the members that placement still counts on."""
        self._etcd = etcd
        self._mirror = mirror
        self._absent = absent

    async def ApplyDeployment(  # noqa: N802
        self, request: routing_pb2.ApplyDeploymentRequest, context: Any
    ) -> routing_pb2.ApplyDeploymentResponse:
        """Creates or replaces a deployment; see routing.proto."""
        check_deployment(request.deployment)
        deployment = routing_pb2.Deployment()
        deployment.CopyFrom(request.deployment)
        deployment.applied_at.GetCurrentTime()
        key = keys.deployment(deployment.name)
        versions = [keys.version(deployment.name, target.version) for target in deployment.targets]
        _, (held, *found) = await self._etcd.get(key, *versions)
        guards = [Unchanged(kv.key, kv.mod_revision) for kv in (held, *found)]
        for target, version in zip(deployment.targets, found, strict=True):
            if version.value is None:
                find_version(self._mirror.state, deployment.name, target.version)
                raise SupersededError(f"{deployment.name}:{target.version} was just removed", hint="push it again")
        revision = await self._etcd.txn(guards, [Put(key, keys.encode(deployment))])
        if revision is None:
            raise SupersededError(f"deployment {deployment.name} changed in the meantime", hint="try again")
        state = await self._mirror.reached(revision)
        return routing_pb2.ApplyDeploymentResponse(status=self._status(state, deployment.name))

    async def GetDeployment(  # noqa: N802
        self, request: routing_pb2.GetDeploymentRequest, context: Any
    ) -> routing_pb2.GetDeploymentResponse:
        """One deployment with its placement."""
        return routing_pb2.GetDeploymentResponse(status=self._status(self._mirror.state, request.name))

    async def ListDeployments(  # noqa: N802
        self, request: routing_pb2.ListDeploymentsRequest, context: Any
    ) -> routing_pb2.ListDeploymentsResponse:
        """A page of deployments with their placement."""
        statuses = deployment_statuses(self._mirror.state, self._absent())
        items, token = page(statuses, request.page_size, request.page_token, lambda status: status.deployment.name)
        return routing_pb2.ListDeploymentsResponse(deployments=items, next_page_token=token)

    async def DeleteDeployment(  # noqa: N802
        self, request: routing_pb2.DeleteDeploymentRequest, context: Any
    ) -> routing_pb2.DeleteDeploymentResponse:
        """Removes a deployment."""
        key = keys.deployment(request.name)
        _, (held,) = await self._etcd.get(key)
        if held.value is None:
            raise _not_deployed(request.name)
        revision = await self._etcd.txn([Unchanged(key, held.mod_revision)], [Delete(key)])
        if revision is None:
            raise SupersededError(f"deployment {request.name} changed in the meantime", hint="try again")
        await self._mirror.reached(revision)
        return routing_pb2.DeleteDeploymentResponse()

    def _status(self, state: State, name: str) -> routing_pb2.DeploymentStatus:
        if name not in state.deployments:
            raise _not_deployed(name)
        only = {status.deployment.name: status for status in deployment_statuses(state, self._absent())}
        return only[name]


def deployment_statuses(state: State, absent: tuple[str, ...]) -> list[routing_pb2.DeploymentStatus]:
    """Every deployment with its placement as it would be decided on this state, by name."""
    placement = place(state, absent)
    return [
        routing_pb2.DeploymentStatus(
            deployment=deployment,
            targets=[target_status(state, placement, name, target) for target in deployment.targets],
        )
        for name, deployment in sorted(state.deployments.items())
    ]


def _not_deployed(name: str) -> NotFoundError:
    return NotFoundError(
        f"model {name!r} is not deployed", hint=f"run: aimesh deploy {name}", reason="DEPLOYMENT_NOT_FOUND"
    )

"""RoutingService: deployments, and what has become of them."""

from __future__ import annotations

from typing import Any

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from coordinator import keys
from coordinator.api.validate import check_deployment
from coordinator.etcd import Delete, Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.paging import page
from coordinator.placement import place, target_status
from coordinator.policy.effects import partial
from coordinator.policy.explain import explain
from coordinator.policy.held import check_held
from coordinator.policy.references import reached
from coordinator.registry.aliases import parse_model
from coordinator.registry.catalog import check_alias, resolved
from coordinator.registry.finding import check_is_model, find_version
from coordinator.rollout.claim import unclaimed
from coordinator.state import State
from meshkit.errors import NotFoundError, SupersededError
from meshkit.names import check_model_name


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """Serves aimesh.routing.v1. A write only states what is wanted; the leader's controller carries it out."""

    def __init__(self, etcd: Etcd, mirror: Mirror, outbox: Outbox) -> None:
        self._etcd = etcd
        self._outbox = outbox
        self._mirror = mirror

    async def ApplyDeployment(  # noqa: N802
        self, request: routing_pb2.ApplyDeploymentRequest, context: Any
    ) -> routing_pb2.ApplyDeploymentResponse:
        """Creates or replaces a deployment; see routing.proto."""
        deployment, guards = await self._resolved(request.deployment)
        check_deployment(deployment)
        guards.append(await unclaimed(self._etcd, deployment.name))
        deployment.applied_at.GetCurrentTime()
        key = keys.deployment(deployment.name)
        versions = [keys.version(deployment.name, target.version) for target in deployment.targets]
        others = reached(deployment, self._mirror.state.deployments) - {deployment.name}
        _, read = await self._etcd.get(key, *versions, *map(keys.deployment, sorted(others)))
        guards += [Unchanged(kv.key, kv.mod_revision) for kv in read]
        held, found = read[0], read[1 : 1 + len(versions)]
        for target, version in zip(deployment.targets, found, strict=True):
            if version.value is None:
                find_version(self._mirror.state, deployment.name, target.version)
                raise SupersededError(f"{deployment.name}:{target.version} was just removed", hint="push it again")
        recorded = [keys.parse(each.value or b"{}", registry_pb2.ModelVersion()) for each in found]
        for each in recorded:
            check_is_model(each)
        check_held(self._mirror.state, deployment, recorded, read[1 + len(versions) :])
        value = keys.encode(deployment)
        event = await self._outbox.event(key, held.value, value)
        revision = await self._etcd.txn(guards, [Put(key, value), event])
        if revision is None:
            raise SupersededError(f"deployment {deployment.name} changed in the meantime", hint="try again")
        state = await self._mirror.reached(revision)
        return routing_pb2.ApplyDeploymentResponse(
            status=self._status(state, deployment.name), partial_rules=partial(deployment)
        )

    async def GetDeployment(  # noqa: N802
        self, request: routing_pb2.GetDeploymentRequest, context: Any
    ) -> routing_pb2.GetDeploymentResponse:
        """One deployment with its placement."""
        return routing_pb2.GetDeploymentResponse(status=self._status(self._mirror.state, request.name))

    async def ListDeployments(  # noqa: N802
        self, request: routing_pb2.ListDeploymentsRequest, context: Any
    ) -> routing_pb2.ListDeploymentsResponse:
        """A page of deployments with their placement."""
        statuses = deployment_statuses(self._mirror.state)
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
        unclaimed_guard = await unclaimed(self._etcd, request.name)
        event = await self._outbox.event(key, held.value, None)
        revision = await self._etcd.txn([Unchanged(key, held.mod_revision), unclaimed_guard], [Delete(key), event])
        if revision is None:
            raise SupersededError(f"deployment {request.name} changed in the meantime", hint="try again")
        await self._mirror.reached(revision)
        return routing_pb2.DeleteDeploymentResponse()

    async def ExplainRoute(  # noqa: N802
        self, request: routing_pb2.ExplainRouteRequest, context: Any
    ) -> routing_pb2.ExplainRouteResponse:
        """Where a request would go at this moment, and why."""
        deployment = self._mirror.state.deployments.get(request.name)
        if deployment is None:
            raise _not_deployed(request.name)
        return explain(self._mirror.state, deployment, request.headers)

    async def _resolved(self, wanted: routing_pb2.Deployment) -> tuple[routing_pb2.Deployment, list[Unchanged]]:
        """A copy of the deployment with a version for each alias, and what that was decided on."""
        check_model_name(wanted.name)
        aliases = [check_alias(target.alias) for target in wanted.targets if target.alias]
        if not aliases:
            return resolved(wanted, registry_pb2.Model(name=wanted.name)), []
        find_version(self._mirror.state, wanted.name)
        _, (held,) = await self._etcd.get(keys.model(wanted.name))
        return resolved(wanted, parse_model(wanted.name, held)), [Unchanged(held.key, held.mod_revision)]

    def _status(self, state: State, name: str) -> routing_pb2.DeploymentStatus:
        if name not in state.deployments:
            raise _not_deployed(name)
        only = {status.deployment.name: status for status in deployment_statuses(state)}
        return only[name]


def deployment_statuses(state: State) -> list[routing_pb2.DeploymentStatus]:
    """Every deployment with its placement as it would be decided on this state, by name."""
    placement = place(state)
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

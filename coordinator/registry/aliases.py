"""Writing aliases and tags to etcd, and with an alias the deployments that follow it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.api.validate import check_deployment
from coordinator.etcd import Created, Delete, Etcd, KeyValue, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.policy.held import check_held
from coordinator.policy.references import reached
from coordinator.registry import catalog
from coordinator.registry.finding import find_version
from coordinator.rollout.check import running
from coordinator.state import State
from meshkit.errors import PreconditionError, SupersededError
from meshkit.names import check_model_name, check_version


@dataclass(frozen=True)
class Moved:
    """What setting an alias came to."""

    model: registry_pb2.Model
    previous: str
    """The version that it stood for; empty when it is new."""
    deployments: tuple[str, ...]
    """Those that changed with it."""


class Aliases:
    """Changes what is said of models, one transaction a change."""

    def __init__(self, etcd: Etcd, mirror: Mirror, outbox: Outbox) -> None:
        self._etcd = etcd
        self._mirror = mirror
        self._outbox = outbox

    async def set(self, name: str, alias: str, version: str, fence: Sequence[Created] = ()) -> Moved:
        """Points an alias at a version, and every target that follows it with it; see registry.proto.

        What the leader does by itself it does behind its `fence`.
        """
        catalog.check_alias(alias)
        _must_name(name, version)
        read = await self._read(name, version)
        model = read.model
        changed, previous = catalog.with_alias(model, alias, version), model.aliases.get(alias, "")
        deployment, guards = await self._follower(read, changed, alias)
        if changed == model and deployment is None:
            return Moved(model, previous, ())
        puts: list[tuple[KeyValue, Message]] = [(read.catalog, changed)]
        puts += [(read.deployment, deployment)] if deployment is not None else []
        await self._write(name, [*fence, *read.guards(), *guards], puts)
        return Moved(changed, previous, (name,) if deployment is not None else ())

    async def remove(self, name: str, alias: str) -> registry_pb2.Model:
        """Removes an alias that no deployment follows. Raises NotFoundError, PreconditionError."""
        find_version(self._mirror.state, name)
        read = await self._read(name)
        changed = catalog.without_alias(read.model, alias)
        if catalog.follows(read.wanted, alias) or catalog.rollout_holds(read.rolling, alias):
            raise PreconditionError(
                f"deployment {name!r} follows the alias {alias!r}",
                hint=f"deploy a version instead: aimesh deploy {name}:{read.model.aliases[alias]}",
                reason="ALIAS_IN_USE",
            )
        await self._write(name, read.guards(), [(read.catalog, changed)])
        return changed

    async def tag(self, name: str, version: str, tags: Mapping[str, str], remove: Iterable[str]) -> registry_pb2.Model:
        """Sets and removes tags of a version. Raises NotFoundError, InvalidInputError, ExhaustedError."""
        _must_name(name, version)
        catalog.check_tags(tags)
        read = await self._read(name, version)
        changed = catalog.with_tags(read.model, version, tags, remove)
        if changed != read.model:
            await self._write(name, read.guards(), [(read.catalog, changed)])
        return changed

    async def _read(self, name: str, version: str = "") -> _Read:
        wanted = [keys.model(name), keys.deployment(name), keys.rollout(name)]
        _, found = await self._etcd.get(*wanted, *([keys.version(name, version)] if version else []))
        if version and found[3].value is None:
            find_version(self._mirror.state, name, version)
            raise SupersededError(f"{name}:{version} was just removed or recorded", hint="try again")
        return _Read(name, *found)

    async def _follower(
        self, read: _Read, changed: registry_pb2.Model, alias: str
    ) -> tuple[routing_pb2.Deployment | None, list[Unchanged]]:
        """The deployment of the name as it becomes, None when it does not change, and what that was decided on."""
        if catalog.rollout_holds(read.rolling, alias) or (
            catalog.follows(read.wanted, alias) and catalog.under_way(read.rolling)
        ):
            raise running(read.rolling)
        if not catalog.follows(read.wanted, alias):
            return None, []
        deployment = catalog.resolved(read.wanted, changed)
        if deployment == read.wanted:
            return None, []
        guards = await self._check(deployment)
        deployment.applied_at.GetCurrentTime()
        return deployment, guards

    async def _check(self, deployment: routing_pb2.Deployment) -> list[Unchanged]:
        """Whether the deployment may become so, as when it is applied; gives what it depends on."""
        state: State = self._mirror.state
        check_deployment(deployment)
        versions = [find_version(state, deployment.name, target.version) for target in deployment.targets]
        others = sorted(reached(deployment, state.deployments) - {deployment.name})
        read: Sequence[KeyValue] = ()
        if others:
            _, read = await self._etcd.get(*map(keys.deployment, others))
        check_held(state, deployment, versions, read)
        return [Unchanged(each.key, each.mod_revision) for each in read]

    async def _write(
        self,
        name: str,
        guards: Sequence[Unchanged | Created],
        puts: Sequence[tuple[KeyValue, Message]],
    ) -> None:
        changes: list[Put | Delete] = []
        for held, message in puts:
            value = keys.encode(message)
            changes += [Put(held.key, value), await self._outbox.event(held.key, held.value, value)]
        revision = await self._etcd.txn(guards, changes)
        if revision is None:
            raise SupersededError(f"{name} changed in the meantime", hint="try again")
        await self._mirror.reached(revision)


@dataclass(frozen=True)
class _Read:
    """What was read of a name, at one revision."""

    name: str
    catalog: KeyValue
    deployment: KeyValue
    rollout: KeyValue
    version: KeyValue | None = None

    @property
    def model(self) -> registry_pb2.Model:
        """Aliases and tags."""
        return parse_model(self.name, self.catalog)

    @property
    def wanted(self) -> routing_pb2.Deployment:
        """The deployment; empty when there is none."""
        return keys.parse(self.deployment.value or b"{}", routing_pb2.Deployment())

    @property
    def rolling(self) -> rollout_pb2.Rollout:
        """Its newest rollout; empty when there was none."""
        return keys.parse(self.rollout.value or b"{}", rollout_pb2.Rollout())

    def guards(self) -> list[Unchanged]:
        """That nothing of it has changed. A rollout's progress counts only where it matters: see `_follower`."""
        kept = [self.catalog, self.deployment, *([self.version] if self.version else [])]
        kept += [] if catalog.under_way(self.rolling) else [self.rollout]
        return [Unchanged(each.key, each.mod_revision) for each in kept]


def parse_model(name: str, held: KeyValue) -> registry_pb2.Model:
    """What etcd holds of a model; one of which nothing is said yet has its name only."""
    return keys.parse(held.value, registry_pb2.Model()) if held.value else registry_pb2.Model(name=name)


def _must_name(name: str, version: str) -> None:
    """NOT_FOUND, not "the newest", for a change that names no version."""
    check_model_name(name)
    check_version(version)

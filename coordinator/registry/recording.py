"""Recording versions and removing them, each in one transaction.

Every push and removal also writes the name's catalog entry: two of one name at the same time meet there, so that the
second is checked against the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf import timestamp_pb2

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.blob_exchange import BlobExchange
from coordinator.etcd import Created, Delete, Etcd, KeyValue, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.registry import catalog
from coordinator.registry.aliases import parse_model
from coordinator.registry.checking import check_record
from coordinator.registry.finding import find_version, versions_of
from coordinator.registry.prompts import prompt_text
from coordinator.registry.succession import check_succession
from coordinator.registry.trust import check_new
from coordinator.state import State
from meshkit import chunks
from meshkit.auth import current_principal
from meshkit.blobs import BlobStore
from meshkit.errors import ConflictError, InvalidInputError, PreconditionError, SupersededError
from meshkit.versions import version_digest


@dataclass(frozen=True)
class Recorder:
    """Writes versions."""

    etcd: Etcd
    mirror: Mirror
    blobs: BlobStore
    exchange: BlobExchange
    outbox: Outbox

    async def create(
        self, version: registry_pb2.ModelVersion, fence: Sequence[Created] = ()
    ) -> registry_pb2.ModelVersion:
        """Records a checked version, or gives the same one that is recorded already; see registry.proto.

        `fence` is what else must hold: a leader's writes compare its key.
        """
        version.digest = version_digest(version)
        key = keys.version(version.name, version.version)
        _, (held, model) = await self.etcd.get(key, keys.model(version.name))
        if held.value is not None:
            return _same_or_conflict(version, keys.parse(held.value, registry_pb2.ModelVersion()))
        state = await self.mirror.reached(model.mod_revision)
        check_succession(version, versions_of(state, version.name))
        check_new(version, state.trust)
        await self._check_content(version)
        _sign_off(version)
        value = keys.encode(version)
        check_record(version, value)
        changes = [Put(key, value), Put(model.key, keys.encode(parse_model(version.name, model)))]
        event = await self.outbox.event(key, None, value)
        guards: list[Created | Unchanged] = [*fence, Unchanged(key, 0), Unchanged(model.key, model.mod_revision)]
        revision = await self.etcd.txn(guards, [*changes, event])
        if revision is None:
            raise SupersededError(f"versions of {version.name} were pushed twice at once", hint="push again")
        await self.mirror.reached(revision)
        return version

    async def delete(self, name: str, version: str) -> None:
        """Removes a version that nothing uses, with what was said and measured of it."""
        find_version(self.mirror.state, name, version or "(none given)")
        read_keys = (keys.version(name, version), keys.deployment(name), keys.rollout(name), keys.model(name))
        _, (held, deployed, rolled, model) = await self.etcd.get(*read_keys)
        state = await self.mirror.reached(model.mod_revision)
        said = parse_model(name, model)
        _check_unused(state, name, version, said, deployed, rolled)
        left = catalog.without_tags(said, version)
        last = not any(other.version != version for other in versions_of(state, name))
        changes = [
            Delete(held.key),
            Delete(keys.measured(name, version)),
            Delete(model.key) if last else Put(model.key, keys.encode(left)),
            await self.outbox.event(held.key, held.value, None),
        ]
        guards = [Unchanged(each.key, each.mod_revision) for each in (held, deployed, rolled, model)]
        revision = await self.etcd.txn(guards, changes)
        if revision is None:
            raise SupersededError(f"{name} changed in the meantime", hint="try again")
        await self.mirror.reached(revision)

    async def _check_content(self, version: registry_pb2.ModelVersion) -> None:
        named = f"{version.name}:{version.version}"
        fits = [(file, await self.exchange.has_size(file.digest, file.size)) for file in version.files]
        if missing := [file.path for file, fit in fits if fit is None]:
            raise PreconditionError(
                f"{named}: the content of {', '.join(missing)} has not been uploaded",
                hint="upload it with ArtifactsService.UploadBlob first",
                reason="BLOB_MISSING",
            )
        if wrong := [file for file, fit in fits if not fit]:
            raise InvalidInputError(
                f"{named}: {wrong[0].path} has other than the {wrong[0].size} bytes that are said of it",
                hint="ModelFile.size is the size of its blob",
            )
        for file in version.files:
            if file.chunks and not await self.exchange.has_size(file.chunks, chunks.list_bytes(file.size)):
                raise PreconditionError(
                    f"{named}: the chunk list of {file.path} has not been uploaded, or lists other than "
                    f"{file.size} bytes",
                    hint="upload it with ArtifactsService.UploadBlob first, or leave ModelFile.chunks empty",
                    reason="BLOB_MISSING",
                )
        if version.kind == registry_pb2.KIND_PROMPT:
            await prompt_text(self.blobs, self.exchange, version)


def _sign_off(version: registry_pb2.ModelVersion) -> None:
    """Who recorded it, and when."""
    version.provenance.pushed_by = current_principal().actor
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    version.created_at.CopyFrom(now)


def _check_unused(
    state: State, name: str, version: str, model: registry_pb2.Model, deployed: KeyValue, rolled: KeyValue
) -> None:
    """Raises PreconditionError while a deployment, its rollout, a node or an alias has a version."""
    deployment = keys.parse(deployed.value or b"{}", routing_pb2.Deployment())
    rollout = keys.parse(rolled.value or b"{}", rollout_pb2.Rollout())
    used = any(target.version == version for target in deployment.targets)
    retiring = deployment.name and any((name, version) in assigned for assigned in state.assignments.values())
    if used or retiring or catalog.rollout_needs(rollout, version):
        raise PreconditionError(
            f"{name}:{version} is deployed",
            hint=f"run: aimesh undeploy {name}, or wait until its successor has taken over",
            reason="VERSION_IN_USE",
        )
    if aliases := catalog.aliases_of(model, version):
        raise PreconditionError(
            f"{name}:{version} is what the alias {' and '.join(aliases)} stands for",
            hint=f"move it first, or remove it: aimesh models alias {name} {aliases[0]} --rm",
            reason="VERSION_IN_USE",
        )


def _same_or_conflict(version: registry_pb2.ModelVersion, held: registry_pb2.ModelVersion) -> registry_pb2.ModelVersion:
    if held.digest != version.digest:
        raise ConflictError(
            f"{version.name}:{version.version} exists with other content",
            hint="versions never change; push under a new version",
            reason="VERSION_EXISTS",
        )
    return held

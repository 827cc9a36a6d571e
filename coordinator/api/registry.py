"""RegistryService: models and their immutable versions."""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf import timestamp_pb2

from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.api.validate import check_version_message
from coordinator.blob_exchange import BlobExchange
from coordinator.etcd import Delete, Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.paging import page
from coordinator.state import State, VersionKey
from meshkit.blobs import BlobStore
from meshkit.errors import ConflictError, NotFoundError, PreconditionError, SupersededError
from meshkit.names import version_key


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """Serves aimesh.registry.v1 from the mirror; writes go to etcd and are answered once the mirror holds them."""

    def __init__(self, etcd: Etcd, mirror: Mirror, blobs: BlobStore, exchange: BlobExchange, outbox: Outbox) -> None:
        self._etcd = etcd
        self._exchange = exchange
        self._outbox = outbox
        self._mirror = mirror
        self._blobs = blobs

    async def CreateVersion(  # noqa: N802
        self, request: registry_pb2.CreateVersionRequest, context: Any
    ) -> registry_pb2.CreateVersionResponse:
        """Records a version; see registry.proto."""
        version = check_version_message(request.version)
        version.digest = version_digest(version)
        key = keys.version(version.name, version.version)
        _, (held,) = await self._etcd.get(key)
        if held.value is not None:
            return registry_pb2.CreateVersionResponse(
                version=_same_or_conflict(version, keys.parse(held.value, registry_pb2.ModelVersion()))
            )
        await self._check_blobs(version)
        now = timestamp_pb2.Timestamp()
        now.GetCurrentTime()
        version.created_at.CopyFrom(now)
        value = keys.encode(version)
        event = await self._outbox.event(key, None, value)
        revision = await self._etcd.txn([Unchanged(key, 0)], [Put(key, value), event])
        if revision is None:
            raise SupersededError(f"{version.name}:{version.version} was pushed twice at once", hint="push again")
        await self._mirror.reached(revision)
        return registry_pb2.CreateVersionResponse(version=version)

    async def GetVersion(  # noqa: N802
        self, request: registry_pb2.GetVersionRequest, context: Any
    ) -> registry_pb2.GetVersionResponse:
        """One version, or the newest."""
        return registry_pb2.GetVersionResponse(version=find_version(self._mirror.state, request.name, request.version))

    async def ListVersions(  # noqa: N802
        self, request: registry_pb2.ListVersionsRequest, context: Any
    ) -> registry_pb2.ListVersionsResponse:
        """A page of versions: by name, newest first."""
        chosen = [v for (name, _), v in self._mirror.state.versions.items() if request.name in ("", name)]
        chosen.sort(key=lambda v: version_key(v.version), reverse=True)
        chosen.sort(key=lambda v: v.name)
        items, token = page(chosen, request.page_size, request.page_token, _page_key, _comes_after)
        return registry_pb2.ListVersionsResponse(versions=items, next_page_token=token)

    async def DeleteVersion(  # noqa: N802
        self, request: registry_pb2.DeleteVersionRequest, context: Any
    ) -> registry_pb2.DeleteVersionResponse:
        """Removes a version that no deployment uses."""
        find_version(self._mirror.state, request.name, request.version or "(none given)")
        key, user = keys.version(request.name, request.version), keys.deployment(request.name)
        _, (held, deployed) = await self._etcd.get(key, user)
        deployment = keys.parse(deployed.value or b"{}", routing_pb2.Deployment())
        used = any(target.version == request.version for target in deployment.targets)
        retiring = deployment.name and _assigned(self._mirror.state, (request.name, request.version))
        if used or retiring:
            raise PreconditionError(
                f"{request.name}:{request.version} is deployed",
                hint=f"run: aimesh undeploy {request.name}, or wait until its successor has taken over",
                reason="VERSION_IN_USE",
            )
        guards = [Unchanged(key, held.mod_revision), Unchanged(user, deployed.mod_revision)]
        event = await self._outbox.event(key, held.value, None)
        revision = await self._etcd.txn(guards, [Delete(key), event])
        if revision is None:
            raise SupersededError(f"{request.name} changed in the meantime", hint="try again")
        await self._mirror.reached(revision)
        return registry_pb2.DeleteVersionResponse()

    async def _check_blobs(self, version: registry_pb2.ModelVersion) -> None:
        absent = [file for file in version.files if file.digest not in self._blobs.held()]
        missing = [file.path for file in absent if not await self._exchange.held_elsewhere(file.digest)]
        if missing:
            raise PreconditionError(
                f"{version.name}:{version.version}: the content of {', '.join(missing)} has not been uploaded",
                hint="upload it with ArtifactsService.UploadBlob first",
                reason="BLOB_MISSING",
            )


def _page_key(version: registry_pb2.ModelVersion) -> str:
    return f"{version.name}:{version.version}"


def _comes_after(version: registry_pb2.ModelVersion, key: str) -> bool:
    """Whether a version comes after the one with this key: by name, then newest first."""
    name, _, number = key.partition(":")
    if version.name != name:
        return version.name > name
    return version_key(version.version) < version_key(number)


def _assigned(state: State, key: VersionKey) -> bool:
    return any(key in assigned for assigned in state.assignments.values())


def find_version(state: State, name: str, version: str = "") -> registry_pb2.ModelVersion:
    """The version named, or the newest. Raises NotFoundError saying which ones there are."""
    known = sorted((v for n, v in state.versions if n == name), key=version_key)
    if not known:
        raise NotFoundError(f"model {name!r} does not exist", hint="see: aimesh models list", reason="MODEL_NOT_FOUND")
    if version and version not in known:
        raise NotFoundError(
            f"model {name!r} has no version {version!r}", hint=f"it has {', '.join(known)}", reason="VERSION_NOT_FOUND"
        )
    return state.versions[(name, version or known[-1])]


def version_digest(version: registry_pb2.ModelVersion) -> str:
    """sha256 over what makes the version what it is: all but requirements, digest and time of recording."""
    essence = registry_pb2.ModelVersion()
    essence.CopyFrom(version)
    for field in ("requirements", "digest", "created_at"):
        essence.ClearField(field)
    return hashlib.sha256(essence.SerializeToString(deterministic=True)).hexdigest()


def _same_or_conflict(version: registry_pb2.ModelVersion, held: registry_pb2.ModelVersion) -> registry_pb2.ModelVersion:
    if held.digest != version.digest:
        raise ConflictError(
            f"{version.name}:{version.version} exists with other content",
            hint="versions never change; push under a new version",
            reason="VERSION_EXISTS",
        )
    return held

"""RegistryService: models and prompts, their immutable versions, and what is said of them."""

from __future__ import annotations

from typing import Any

from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from coordinator.api.validate import check_version_message
from coordinator.blob_exchange import BlobExchange
from coordinator.etcd import Etcd
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.paging import page
from coordinator.registry.aliases import Aliases
from coordinator.registry.compatibility import compatible
from coordinator.registry.finding import check_is_model, find_version, kind_of
from coordinator.registry.prompts import prompt_text
from coordinator.registry.recording import Recorder
from coordinator.registry.trust import TrustKeeper
from meshkit.blobs import BlobStore
from meshkit.names import version_key

__all__ = ["RegistryService", "find_version"]


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """Serves aimesh.registry.v1 from the mirror; writes go to etcd and are answered once the mirror holds them."""

    def __init__(self, etcd: Etcd, mirror: Mirror, blobs: BlobStore, exchange: BlobExchange, outbox: Outbox) -> None:
        self._mirror = mirror
        self._blobs = blobs
        self._exchange = exchange
        self._recorder = Recorder(etcd, mirror, blobs, exchange, outbox)
        self._aliases = Aliases(etcd, mirror, outbox)
        self._trust = TrustKeeper(etcd, mirror, outbox)

    async def CreateVersion(  # noqa: N802
        self, request: registry_pb2.CreateVersionRequest, context: Any
    ) -> registry_pb2.CreateVersionResponse:
        """Records a version; see registry.proto."""
        recorded = await self._recorder.create(check_version_message(request.version))
        return registry_pb2.CreateVersionResponse(version=recorded)

    async def GetVersion(  # noqa: N802
        self, request: registry_pb2.GetVersionRequest, context: Any
    ) -> registry_pb2.GetVersionResponse:
        """One version, or the newest; a prompt with its text."""
        version = find_version(self._mirror.state, request.name, request.version)
        is_prompt = version.kind == registry_pb2.KIND_PROMPT
        text = await prompt_text(self._blobs, self._exchange, version) if is_prompt else ""
        return registry_pb2.GetVersionResponse(version=version, text=text)

    async def ListVersions(  # noqa: N802
        self, request: registry_pb2.ListVersionsRequest, context: Any
    ) -> registry_pb2.ListVersionsResponse:
        """A page of versions: by name, newest first."""
        chosen = [
            version
            for (name, _), version in self._mirror.state.versions.items()
            if request.name in ("", name) and request.kind in (registry_pb2.KIND_UNSPECIFIED, kind_of(version))
        ]
        chosen.sort(key=lambda v: version_key(v.version), reverse=True)
        chosen.sort(key=lambda v: v.name)
        items, token = page(chosen, request.page_size, request.page_token, _page_key, _comes_after)
        return registry_pb2.ListVersionsResponse(versions=items, next_page_token=token)

    async def DeleteVersion(  # noqa: N802
        self, request: registry_pb2.DeleteVersionRequest, context: Any
    ) -> registry_pb2.DeleteVersionResponse:
        """Removes a version that nothing uses."""
        await self._recorder.delete(request.name, request.version)
        return registry_pb2.DeleteVersionResponse()

    async def SignVersion(  # noqa: N802
        self, request: registry_pb2.SignVersionRequest, context: Any
    ) -> registry_pb2.SignVersionResponse:
        """Adds a signature of a trusted key."""
        signed = await self._trust.sign(request.name, request.version, request.signature)
        return registry_pb2.SignVersionResponse(version=signed)

    async def GetModel(  # noqa: N802
        self, request: registry_pb2.GetModelRequest, context: Any
    ) -> registry_pb2.GetModelResponse:
        """Aliases, tags, and what the versions took where they were loaded."""
        state = self._mirror.state
        find_version(state, request.name)
        return registry_pb2.GetModelResponse(
            model=state.models.get(request.name) or registry_pb2.Model(name=request.name),
            measured={version: took for (name, version), took in state.measured.items() if name == request.name},
        )

    async def SetAlias(  # noqa: N802
        self, request: registry_pb2.SetAliasRequest, context: Any
    ) -> registry_pb2.SetAliasResponse:
        """Points an alias at a version, and what follows it with it."""
        moved = await self._aliases.set(request.name, request.alias, request.version)
        return registry_pb2.SetAliasResponse(
            model=moved.model, previous_version=moved.previous, deployments=moved.deployments
        )

    async def DeleteAlias(  # noqa: N802
        self, request: registry_pb2.DeleteAliasRequest, context: Any
    ) -> registry_pb2.DeleteAliasResponse:
        """Removes an alias that nothing follows."""
        return registry_pb2.DeleteAliasResponse(model=await self._aliases.remove(request.name, request.alias))

    async def TagVersion(  # noqa: N802
        self, request: registry_pb2.TagVersionRequest, context: Any
    ) -> registry_pb2.TagVersionResponse:
        """Sets and removes tags of a version."""
        model = await self._aliases.tag(request.name, request.version, request.set, request.remove)
        return registry_pb2.TagVersionResponse(model=model)

    async def GetCompatibility(  # noqa: N802
        self, request: registry_pb2.GetCompatibilityRequest, context: Any
    ) -> registry_pb2.GetCompatibilityResponse:
        """Which nodes can run a version."""
        state = self._mirror.state
        version = find_version(state, request.name, request.version)
        check_is_model(version)
        measured = state.measured.get((version.name, version.version))
        nodes = [compatible(version, node, measured) for node in state.known.values()]
        return registry_pb2.GetCompatibilityResponse(version=version.version, nodes=nodes)

    async def GetTrust(  # noqa: N802
        self, request: registry_pb2.GetTrustRequest, context: Any
    ) -> registry_pb2.GetTrustResponse:
        """Whose signatures count."""
        return registry_pb2.GetTrustResponse(trust=self._mirror.state.trust)

    async def SetTrust(  # noqa: N802
        self, request: registry_pb2.SetTrustRequest, context: Any
    ) -> registry_pb2.SetTrustResponse:
        """Replaces whose signatures count."""
        replaces = request.replaces if request.HasField("replaces") else None
        return registry_pb2.SetTrustResponse(trust=await self._trust.set(request.trust, replaces))


def _page_key(version: registry_pb2.ModelVersion) -> str:
    return f"{version.name}:{version.version}"


def _comes_after(version: registry_pb2.ModelVersion, key: str) -> bool:
    """Whether a version comes after the one with this key: by name, then newest first."""
    name, _, number = key.partition(":")
    if version.name != name:
        return version.name > name
    return version_key(version.version) < version_key(number)

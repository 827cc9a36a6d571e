"""Calls to the registry. Each raises what the registry answers, in the catalogue's words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh


@asynccontextmanager
async def registry_service(mesh: Mesh) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    """The service at the first coordinator that answers."""
    async with connect(mesh, "coordinator") as channel:
        yield registry_pb2_grpc.RegistryServiceStub(channel)


async def get_version(mesh: Mesh, name: str, version: str) -> registry_pb2.ModelVersion:
    """One version, the newest when none is named. Raises NotFoundError."""
    return (await get_with_text(mesh, name, version)).version


async def get_with_text(mesh: Mesh, name: str, version: str) -> registry_pb2.GetVersionResponse:
    """One version, and its text when it is a prompt. Raises NotFoundError."""
    async with registry_service(mesh) as registry:
        request = registry_pb2.GetVersionRequest(name=name, version=version)
        return await registry.GetVersion(request, timeout=CALL_TIMEOUT_S)


async def list_versions(
    mesh: Mesh, name: str = "", kind: registry_pb2.Kind.ValueType = registry_pb2.KIND_MODEL
) -> list[registry_pb2.ModelVersion]:
    """All versions of a kind (of every kind when unspecified), by name, newest first."""
    found: list[registry_pb2.ModelVersion] = []
    request = registry_pb2.ListVersionsRequest(name=name, page_size=1000, kind=kind)
    async with registry_service(mesh) as registry:
        while True:
            page = await registry.ListVersions(request, timeout=CALL_TIMEOUT_S)
            found += page.versions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def delete_version(mesh: Mesh, name: str, version: str) -> None:
    """Removes a version. Raises NotFoundError, or PreconditionError while something uses it."""
    async with registry_service(mesh) as registry:
        request = registry_pb2.DeleteVersionRequest(name=name, version=version)
        await registry.DeleteVersion(request, timeout=CALL_TIMEOUT_S)


async def get_model(mesh: Mesh, name: str) -> registry_pb2.GetModelResponse:
    """Aliases, tags and measurements. Raises NotFoundError."""
    async with registry_service(mesh) as registry:
        return await registry.GetModel(registry_pb2.GetModelRequest(name=name), timeout=CALL_TIMEOUT_S)


async def set_alias(mesh: Mesh, name: str, alias: str, version: str) -> registry_pb2.SetAliasResponse:
    """Points an alias at a version, and what follows it with it."""
    async with registry_service(mesh) as registry:
        request = registry_pb2.SetAliasRequest(name=name, alias=alias, version=version)
        return await registry.SetAlias(request, timeout=CALL_TIMEOUT_S)


async def delete_alias(mesh: Mesh, name: str, alias: str) -> registry_pb2.Model:
    """Removes an alias."""
    async with registry_service(mesh) as registry:
        request = registry_pb2.DeleteAliasRequest(name=name, alias=alias)
        return (await registry.DeleteAlias(request, timeout=CALL_TIMEOUT_S)).model


async def tag_version(
    mesh: Mesh, name: str, version: str, tags: Mapping[str, str], remove: Iterable[str] = ()
) -> registry_pb2.Model:
    """Sets and removes tags."""
    async with registry_service(mesh) as registry:
        request = registry_pb2.TagVersionRequest(name=name, version=version, set=tags, remove=remove)
        return (await registry.TagVersion(request, timeout=CALL_TIMEOUT_S)).model


async def say_of(
    mesh: Mesh, version: registry_pb2.ModelVersion, tags: Mapping[str, str], aliases: Iterable[str]
) -> None:
    """Tags a version and points aliases at it, after its push."""
    if tags:
        await tag_version(mesh, version.name, version.version, tags)
    for alias in aliases:
        await set_alias(mesh, version.name, alias, version.version)


async def get_compatibility(mesh: Mesh, name: str, version: str) -> registry_pb2.GetCompatibilityResponse:
    """Which nodes can run a version, the newest when none is named."""
    async with registry_service(mesh) as registry:
        request = registry_pb2.GetCompatibilityRequest(name=name, version=version)
        return await registry.GetCompatibility(request, timeout=CALL_TIMEOUT_S)

"""Models and versions: calls to the registry, and what they give as tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.output import human_bytes
from tools.cli.plain import enum_name
from tools.cli.target import Mesh

_DATA_TYPE = registry_pb2.DataType.DESCRIPTOR


async def get_version(mesh: Mesh, name: str, version: str) -> registry_pb2.ModelVersion:
    """One version, the newest when none is named. Raises NotFoundError."""
    async with connect(mesh, "coordinator") as channel:
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        request = registry_pb2.GetVersionRequest(name=name, version=version)
        return (await registry.GetVersion(request, timeout=CALL_TIMEOUT_S)).version


async def list_versions(mesh: Mesh) -> list[registry_pb2.ModelVersion]:
    """All versions, page by page."""
    found: list[registry_pb2.ModelVersion] = []
    request = registry_pb2.ListVersionsRequest(page_size=1000)
    async with connect(mesh, "coordinator") as channel:
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        while True:
            page = await registry.ListVersions(request, timeout=CALL_TIMEOUT_S)
            found += page.versions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def delete_version(mesh: Mesh, name: str, version: str) -> None:
    """Removes a version. Raises NotFoundError, or PreconditionError while a deployment uses it."""
    async with connect(mesh, "coordinator") as channel:
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        request = registry_pb2.DeleteVersionRequest(name=name, version=version)
        await registry.DeleteVersion(request, timeout=CALL_TIMEOUT_S)


def versions_table(versions: list[registry_pb2.ModelVersion]) -> Table:
    """One row a version."""
    table = _table("model", "version", "runtime", "size", "memory", "recorded")
    table.title, table.title_justify, table.title_style = "Models", "left", "bold"
    for version in versions:
        table.add_row(
            version.name,
            version.version,
            version.runtime,
            human_bytes(sum(file.size for file in version.files)),
            human_bytes(version.requirements.memory_bytes),
            version.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M UTC"),
        )
    return table


def version_tables(version: registry_pb2.ModelVersion) -> RenderableType:
    """Everything about one version."""
    signature, needs = version.signature, version.requirements
    facts = [
        f"{version.name}:{version.version}  runtime {version.runtime}",
        f"digest   {version.digest}",
        f"needs    {human_bytes(needs.memory_bytes)} memory"
        + (f", {human_bytes(needs.gpu_memory_bytes)} GPU memory" if needs.gpu_memory_bytes else ""),
        "calls    " + ("stream only (ModelStreamInfer)" if signature.decoupled else "unary or stream"),
    ]
    if signature.max_batch_size:
        facts.append(f"batches  up to {signature.max_batch_size}")
    facts += [f"setting  {key} = {value}" for key, value in sorted(version.parameters.items())]
    tensors = _table("", "tensor", "type", "shape", "")
    for kind, specs in (("in", signature.inputs), ("out", signature.outputs)):
        for spec in specs:
            optional = "optional" if spec.optional else ""
            tensors.add_row(kind, spec.name, enum_name(_DATA_TYPE, spec.data_type), str(list(spec.shape)), optional)
    files = _table("file", "size", "sha256")
    for file in version.files:
        files.add_row(file.path, human_bytes(file.size), file.digest[:16] + "…")
    return Group(Text("\n".join(facts)), Text(""), tensors, Text(""), files)


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="dim", pad_edge=False)

"""Models and versions as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.registry.v1 import registry_pb2
from tools.cli import identification
from tools.cli.output import human_bytes
from tools.cli.plain import enum_name, plain

_DATA_TYPE = registry_pb2.DataType.DESCRIPTOR


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
            recorded_at(version),
        )
    return table


def version_tables(version: registry_pb2.ModelVersion, held: registry_pb2.GetModelResponse) -> RenderableType:
    """Everything about one version."""
    tensors = _table("", "tensor", "type", "shape", "")
    for kind, specs in (("in", version.signature.inputs), ("out", version.signature.outputs)):
        for spec in specs:
            optional = "optional" if spec.optional else ""
            tensors.add_row(kind, spec.name, enum_name(_DATA_TYPE, spec.data_type), str(list(spec.shape)), optional)
    files = _table("file", "size", "sha256")
    for file in version.files:
        files.add_row(file.path, human_bytes(file.size), file.digest[:16] + "…")
    said = _said(held.model, version.version)
    facts = Text("\n".join([*_facts(version), *_took(held, version.version), *_origin(version), *said]))
    parts: list[RenderableType] = [facts, Text(""), tensors, Text(""), files]
    if version.changelog:
        parts += [Text(""), Text(version.changelog.rstrip())]
    return Group(*parts)


def prompts_table(versions: Iterable[registry_pb2.ModelVersion]) -> Table:
    """One row a version of a prompt."""
    table = _table("prompt", "version", "size", "recorded", "by", "what is new")
    for version in versions:
        size, new = human_bytes(sum(file.size for file in version.files)), version.changelog.strip().partition("\n")[0]
        table.add_row(version.name, version.version, size, recorded_at(version), version.provenance.pushed_by, new)
    return table


def prompt_tables(
    version: registry_pb2.ModelVersion, held: registry_pb2.GetModelResponse, places: Sequence[str], text: str
) -> RenderableType:
    """Everything about one version of a prompt."""
    facts = [
        f"{version.name}:{version.version}  prompt",
        f"digest   {version.digest}",
        *_origin(version),
        *_said(held.model, version.version),
        f"places   {', '.join(places) or 'none'}",
    ]
    changelog = [Text(""), Text(version.changelog.rstrip())] if version.changelog else []
    return Group(Text("\n".join(facts)), *changelog, Text(""), Text(text.rstrip("\n")))


def history_table(versions: Sequence[registry_pb2.ModelVersion], model: registry_pb2.Model) -> Table:
    """One row a version, newest first: who recorded it, from what, and what was said of it."""
    table = _table("version", "recorded", "by", "from", "what is new", "tags", "aliases")
    for version in versions:
        said = said_of(registry_pb2.GetModelResponse(model=model), version.version)
        table.add_row(
            version.version,
            recorded_at(version),
            version.provenance.pushed_by,
            version.provenance.source,
            version.changelog.strip().partition("\n")[0],
            ", ".join(_pairs(said["tags"])),
            ", ".join(said["aliases"]),
        )
    return table


def compatibility_table(nodes: Iterable[registry_pb2.NodeCompatibility], runtime: str) -> Table:
    """One row a node."""
    table = _table("node", "", f"runtime {runtime}", "Triton", "GPU memory", "memory", "why not")
    for node in nodes:
        table.add_row(
            node.node,
            Text("✓", "green") if node.compatible else Text("✗", "red"),
            node.runtime_version or "?",
            node.triton_version or "?",
            human_bytes(node.gpu_memory_bytes) if node.gpu_memory_bytes else "-",
            human_bytes(node.memory_bytes),
            "\n".join(node.reasons),
        )
    return table


def said_of(held: registry_pb2.GetModelResponse, version: str) -> dict[str, Any]:
    """Tags, aliases and measurements of one version, for JSON."""
    model = held.model
    return {
        "tags": dict(sorted(model.tags[version].values.items())) if version in model.tags else {},
        "aliases": sorted(alias for alias, stands_for in model.aliases.items() if stands_for == version),
        "measured": plain(held.measured[version]) if version in held.measured else None,
    }


def recorded_at(version: registry_pb2.ModelVersion) -> str:
    """When a version was recorded, for people."""
    return version.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M UTC")


def _facts(version: registry_pb2.ModelVersion) -> list[str]:
    signature, needs = version.signature, version.requirements
    facts = [
        f"{version.name}:{version.version}  runtime {version.runtime or '-'}",
        f"digest   {version.digest}",
        f"needs    {human_bytes(needs.memory_bytes)} memory"
        + (f", {human_bytes(needs.gpu_memory_bytes)} GPU memory" if needs.gpu_memory_bytes else "")
        + "".join(f", {what} ≥ {least}" for what, least in _least(version) if least),
        "calls    " + ("stream only (ModelStreamInfer)" if signature.decoupled else "unary or stream"),
    ]
    if signature.max_batch_size:
        facts.append(f"batches  up to {signature.max_batch_size}")
    if version.migration.path:
        facts.append(f"migrates {version.migration.path}")
    facts += identification.facts(version.identification)
    return facts + [f"setting  {pair}" for pair in _pairs(version.parameters, " = ")]


def _took(held: registry_pb2.GetModelResponse, version: str) -> list[str]:
    """What it took where it was loaded."""
    if version not in held.measured:
        return []
    took = held.measured[version]
    gpu = f", {human_bytes(took.gpu_memory_bytes)} GPU memory" if took.gpu_memory_bytes else ""
    load = f", loaded in {took.load_time.ToTimedelta().total_seconds():.1f} s" if took.HasField("load_time") else ""
    return [f"took     {human_bytes(took.memory_bytes)} memory{gpu}{load} on {took.node_id}"]


def _least(version: registry_pb2.ModelVersion) -> list[tuple[str, str]]:
    needs = version.requirements
    return [("Triton", needs.triton_version), (f"runtime {version.runtime}", needs.runtime_version)]


def _origin(version: registry_pb2.ModelVersion) -> list[str]:
    provenance = version.provenance
    by = f" by {provenance.pushed_by}" if provenance.pushed_by else ""
    facts = [f"recorded {recorded_at(version)}{by}"]
    facts += [f"from     {provenance.source}"] if provenance.source else []
    facts += [f"         {pair}" for pair in _pairs(provenance.details, " = ")]
    facts += [f"replaces {version.replaces}"] if version.replaces else []
    return facts + [f"signed   by key {signature.key_id}" for signature in version.signatures]


def _said(model: registry_pb2.Model, version: str) -> list[str]:
    said = said_of(registry_pb2.GetModelResponse(model=model), version)
    facts = [f"aliases  {', '.join(said['aliases'])}"] if said["aliases"] else []
    return facts + ([f"tags     {', '.join(_pairs(said['tags']))}"] if said["tags"] else [])


def _pairs(values: Any, between: str = "=") -> list[str]:
    return [f"{key}{between}{value}" for key, value in sorted(values.items())]


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="dim", pad_edge=False)

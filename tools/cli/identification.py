"""`aimesh models identify`, and what a push does with the same findings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from aimesh.registry.v1 import registry_pb2
    from inference.packaging import Package

AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Push even when a pickle or a layer in it can run code where it is loaded."),
]
_UNITS = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3))


def identify(
    path: Annotated[Path, typer.Argument(help="A file or a directory.")],
    as_json: Json = False,
) -> None:
    """Say what a model file is, by its content alone; nothing of it is loaded or run.

    Example: [bold]aimesh models identify model.safetensors[/bold]
    """
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from training.identify import identify as identify_path

    found = identify_path(path)
    if as_json:
        print_json(plain(found))
    else:
        console().print(findings(found))


def look_before(path: Path, *, allow_pickle: bool) -> registry_pb2.Identification | None:
    """What is to be pushed, before anything else opens it; None for a path that is not there.

    Raises InvalidInputError for broken files and, unless they are allowed, for those that can run code.
    """
    from training.identify import identify as identify_path

    if not path.exists():
        return None  # packaging says so
    found = identify_path(path)
    _refuse(path.name, found, allow_pickle=allow_pickle)
    return found


def tell(packed: Package, found: registry_pb2.Identification | None, *, allow_pickle: bool) -> None:
    """Puts the identification into the version; of an archive, what was in it. Says it on standard error."""
    from tools.cli.output import progress_console
    from training.identify import identify as identify_path

    if packed.unpacked is not None:
        found = identify_path(Path(packed.unpacked.name))
        _refuse(packed.version.name, found, allow_pickle=allow_pickle)
    if found is None:
        return
    packed.version.identification.CopyFrom(found)
    progress_console().print(f"Identified as {summary(found)}.", soft_wrap=True)
    for warning in found.warnings:
        progress_console().print(f"warning: {warning}", soft_wrap=True)


def _refuse(name: str, found: registry_pb2.Identification, *, allow_pickle: bool) -> None:
    from meshkit.errors import InvalidInputError
    from training.identify import dangers

    if (why := dangers(found)) and not allow_pickle:
        raise InvalidInputError(
            f"{name} can run code of whoever made it where it is loaded: {'; '.join(why[:3])}",
            hint="save the weights as safetensors or export the model; --allow-pickle if you trust whoever made it",
            reason="PICKLE_DANGEROUS",
        )


def summary(found: registry_pb2.Identification) -> str:
    """One line: `gguf, LlamaForCausalLM (transformer), 134.5 M parameters, Q4_1`."""
    family = f"({found.family})" if found.architecture and found.family else found.family
    name = " ".join(filter(None, (found.architecture, family)))
    types = sorted(found.data_types, key=lambda one: -found.data_types[one])
    made = f" of {found.framework}" if found.framework not in ("", found.format) else ""
    count = f"{short_count(found.parameters)} parameters" if found.parameters else ""
    return ", ".join(filter(None, (found.format + made, name, count, "/".join(types[:3]))))


def short_count(count: int) -> str:
    """134515008 → '134.5 M'."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def facts(found: registry_pb2.Identification) -> list[str]:
    """The lines that `models show` adds; none when nothing was identified."""
    if not found.format:
        return []
    return [f"found    {summary(found)}", *(f"warning  {warning}" for warning in found.warnings)]


def findings(found: registry_pb2.Identification) -> RenderableType:
    """Everything that was found, for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from aimesh.registry.v1 import registry_pb2
    from tools.cli.output import human_bytes
    from tools.cli.plain import enum_name

    lines = [summary(found), *(f"  {count:>16,} {name}" for name, count in sorted(found.data_types.items()))]
    needs = found.requirements
    if needs.memory_bytes:
        gpu = f", or {human_bytes(needs.gpu_memory_bytes)} on a GPU" if needs.gpu_memory_bytes else ""
        lines.append(f"needs about {human_bytes(needs.memory_bytes)} of memory{gpu}")
    tensors = Table("", "tensor", "type", "shape", box=None, header_style="dim", pad_edge=False)
    for kind, specs in (("in", found.signature.inputs), ("out", found.signature.outputs)):
        for spec in specs:
            name = enum_name(registry_pb2.DataType.DESCRIPTOR, spec.data_type) if spec.data_type else "?"
            tensors.add_row(kind, spec.name, name, str(list(spec.shape)))
    warnings = [Text(f"warning: {warning}", "yellow") for warning in found.warnings]
    return Group(Text("\n".join(lines)), *([tensors] if tensors.row_count else []), *warnings)

"""`aimesh models push | list | show | rm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from aimesh.registry.v1 import registry_pb2
    from inference.packaging import Package
    from tools.cli.target import Mesh

app = typer.Typer(name="models", help="Record models and look at them.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="The newest version when none is named.")]


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="A file, a directory, or an archive of one.")],
    name: Annotated[str, typer.Option(help="The model's name, which clients route by.")],
    version: Annotated[str, typer.Option(help="A semantic version: 1.0.0")],
    runtime: Annotated[
        str | None, typer.Option(help="llama, onnx, torch, embed or python; found by content when not given.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of the runtime. Any number of them.")
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME:TYPE:SHAPE", help="An input that the files do not tell: x:FP32:-1x3"),
    ] = None,
    output: Annotated[list[str] | None, typer.Option(metavar="NAME:TYPE:SHAPE", help="The same for an output.")] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Upload a model and record it as an immutable version. An upload that broke off goes on where it stopped.

    Example: [bold]aimesh models push SmolLM2.gguf --name smollm2 --version 1.0.0 --param n_ctx=2048[/bold]
    """
    from inference.packaging import package
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    parameters = parse_parameters(param or [])
    with package(path, name, version, runtime, parameters, input_ or (), output or ()) as packed:
        recorded = push_with_progress(mesh, packed)
    if as_json:
        print_json(plain(recorded))
    else:
        console().print(
            f"Recorded {name}:{version} ({recorded.runtime}). Next: aimesh deploy {name}:{version} --replicas 1"
        )


@app.command("list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List all models and versions.

    Example: [bold]aimesh models list[/bold]
    """
    from tools.cli.client import run
    from tools.cli.models_view import list_versions, versions_table
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    versions = run(list_versions(find_mesh(state_dir)))
    if as_json:
        print_json([plain(version) for version in versions])
    elif versions:
        console().print(versions_table(versions))
    else:
        console().print("No models yet: aimesh models push PATH --name N --version V")


@app.command()
def show(model: Named, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show one version: what it takes and gives, what it needs, its files.

    Example: [bold]aimesh models show smollm2:1.0.0[/bold]
    """
    from tools.cli.client import run
    from tools.cli.models_view import get_version, version_tables
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    version = run(get_version(find_mesh(state_dir), *split_name(model)))
    if as_json:
        print_json(plain(version))
    else:
        console().print(version_tables(version))


@app.command()
def rm(
    model: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version to remove.")],
    state_dir: StateDir = None,
) -> None:
    """Remove a version that no deployment uses.

    Example: [bold]aimesh models rm smollm2:1.0.0[/bold]
    """
    from meshkit.errors import InvalidInputError
    from tools.cli.client import run
    from tools.cli.models_view import delete_version
    from tools.cli.output import console
    from tools.cli.target import find_mesh

    name, version = split_name(model)
    if not version:
        raise InvalidInputError(f"{model!r} names no version", hint=f"aimesh models rm {name}:1.0.0")
    run(delete_version(find_mesh(state_dir), name, version))
    console().print(f"Removed {name}:{version}.")


def split_name(text: str) -> tuple[str, str]:
    """'smollm2:1.0.0' → ('smollm2', '1.0.0'); the version is empty when none is named."""
    name, _, version = text.partition(":")
    return name, version


def parse_parameters(texts: list[str]) -> dict[str, str]:
    """['n_ctx=2048'] → {'n_ctx': '2048'}. Raises InvalidInputError."""
    from meshkit.errors import InvalidInputError

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"--param {text!r} is not understood", hint="write --param key=value")
        if key in found:
            raise InvalidInputError(f"--param {key} is given twice")
        found[key] = value
    return found


def push_with_progress(mesh: Mesh, packed: Package) -> registry_pb2.ModelVersion:
    """Uploads and records, showing a bar on standard error."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from tools.cli.client import run
    from tools.cli.output import progress_console
    from tools.cli.upload import push as send

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=progress_console()) as progress:
        total = sum({file.digest: file.size for file in packed.version.files}.values())
        task = progress.add_task(f"{packed.version.name}:{packed.version.version}", total=total)
        return run(send(mesh, packed, lambda count: progress.advance(task, count)))

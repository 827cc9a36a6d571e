"""`aimesh models push | list | show | rm`; more of the group is in models_catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.identification import AllowPickle, identify
from tools.cli.options import Json, StateDir, parse_pairs
from tools.cli.said import Alias, Changelog, Detail, Replaces, Source, Tag
from tools.cli.vouching import Migrate, MigrateTimeout, SignKey

if TYPE_CHECKING:
    from aimesh.registry.v1 import registry_pb2
    from inference.packaging import Package
    from tools.cli.target import Mesh

app = typer.Typer(name="models", help="Record models and look at them.", no_args_is_help=True)
app.command()(identify)

Named = Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="The newest version when none is named.")]


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
    changelog: Changelog = "",
    source: Source = "",
    detail: Detail = None,
    replaces: Replaces = "",
    tag: Tag = None,
    alias: Alias = None,
    migrate: Migrate = None,
    migrate_timeout: MigrateTimeout = "5m",
    sign_key: SignKey = None,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Upload a model and record it as an immutable version. An upload that broke off goes on where it stopped.

    A version that breaks callers of the one that it replaces needs a higher major number.

    Example: [bold]aimesh models push SmolLM2.gguf --name smollm2 --version 1.0.0 --param n_ctx=2048[/bold]
    """
    from inference.packaging import package
    from tools.cli.identification import look_before, tell
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.said import read_said, record_said
    from tools.cli.target import find_mesh
    from tools.cli.vouching import sign_package, with_migration

    said = read_said(path, changelog, source, detail, replaces, tag, alias)
    mesh = find_mesh(state_dir)
    parameters = parse_pairs(param or [])
    identification = look_before(path, allow_pickle=allow_pickle)
    with package(path, name, version, runtime, parameters, input_ or (), output or ()) as packed:
        tell(packed, identification, allow_pickle=allow_pickle)
        complete = with_migration(packed, migrate, migrate_timeout)
        said.tell(packed.version)
        sign_package(complete, sign_key)
        recorded = push_with_progress(mesh, complete)
    record_said(mesh, recorded, said)
    if as_json:
        print_json(plain(recorded))
    else:
        console().print(f"Recorded {name}:{version} ({recorded.runtime}). Next: aimesh deploy {name}:{version}")
        console().print(
            f"In the place of a version that serves already: aimesh rollout start {name}:{version}", style="dim"
        )


@app.command("list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List all models and versions.

    Example: [bold]aimesh models list[/bold]
    """
    from tools.cli.client import run
    from tools.cli.models_view import versions_table
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.registry import list_versions
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
    """Show one version: where it comes from, what it takes and gives, what it needs, its files.

    Example: [bold]aimesh models show smollm2:1.0.0[/bold]
    """
    from tools.cli.client import run
    from tools.cli.models_view import said_of, version_tables
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.reference import parse_reference, resolve
    from tools.cli.registry import get_model, get_version
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    version = run(get_version(mesh, *run(resolve(mesh, parse_reference(model)))))
    held = run(get_model(mesh, version.name))
    if as_json:
        print_json({**plain(version), **said_of(held, version.version)})
    else:
        console().print(version_tables(version, held))


@app.command()
def rm(
    model: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version to remove.")],
    state_dir: StateDir = None,
) -> None:
    """Remove a version that no deployment uses and no alias stands for; a model's or a prompt's.

    Example: [bold]aimesh models rm smollm2:1.0.0[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console
    from tools.cli.reference import exact
    from tools.cli.registry import delete_version
    from tools.cli.target import find_mesh

    name, version = exact(model, "aimesh models rm smollm2:1.0.0")
    run(delete_version(find_mesh(state_dir), name, version))
    console().print(f"Removed {name}:{version}.")


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

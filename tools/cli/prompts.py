"""`aimesh prompts push | list | show | get`: texts with places for values, versioned like models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir, parse_pairs
from tools.cli.said import Alias, Changelog, Detail, Replaces, Source, Tag
from tools.cli.vouching import SignKey

if TYPE_CHECKING:
    from aimesh.registry.v1 import registry_pb2
    from tools.cli.target import Mesh

app = typer.Typer(name="prompts", help="Record prompts and fetch them.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="The newest version when none is named.")]


@app.command()
def push(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A UTF-8 text; {{ name }} is a place for a value.")],
    name: Annotated[str, typer.Option(help="The prompt's name; models and prompts share their names.")],
    version: Annotated[str, typer.Option(help="A semantic version: 1.0.0")],
    changelog: Changelog = "",
    source: Source = "",
    detail: Detail = None,
    replaces: Replaces = "",
    tag: Tag = None,
    alias: Alias = None,
    sign_key: SignKey = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Record a text as an immutable version of a prompt.

    Example: [bold]aimesh prompts push greeting.txt --name greeting --version 1.0.0[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.prompt_text import places, read_prompt
    from tools.cli.said import read_said, record_said
    from tools.cli.target import find_mesh
    from tools.cli.upload import push as send
    from tools.cli.vouching import sign_package

    said = read_said(path, changelog, source, detail, replaces, tag, alias)
    packed, text = read_prompt(path, name, version)
    said.tell(packed.version)
    sign_package(packed, sign_key)
    mesh = find_mesh(state_dir)
    recorded = run(send(mesh, packed, lambda _: None))
    record_said(mesh, recorded, said)
    if as_json:
        print_json(plain(recorded))
        return
    values = "".join(f" --var {place}=..." for place in places(text))
    console().print(f"Recorded {name}:{version}. Next: aimesh prompts get {name}:{version}{values}")


@app.command("list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List all prompts and versions.

    Example: [bold]aimesh prompts list[/bold]
    """
    from aimesh.registry.v1 import registry_pb2
    from tools.cli.client import run
    from tools.cli.models_view import prompts_table
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.registry import list_versions
    from tools.cli.target import find_mesh

    versions = run(list_versions(find_mesh(state_dir), kind=registry_pb2.KIND_PROMPT))
    if as_json:
        print_json([plain(version) for version in versions])
    elif versions:
        console().print(prompts_table(versions))
    else:
        console().print("No prompts yet: aimesh prompts push FILE --name N --version V")


@app.command()
def show(prompt: Named, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show one version: where it comes from, what is said of it, its places, its text.

    Example: [bold]aimesh prompts show greeting:1.0.0[/bold]
    """
    from tools.cli.client import run
    from tools.cli.models_view import prompt_tables, said_of
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.prompt_text import places
    from tools.cli.registry import get_model
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    found = fetch(mesh, prompt)
    held = run(get_model(mesh, found.version.name))
    names = places(found.text)
    if as_json:
        said = said_of(held, found.version.version)
        print_json({**plain(found.version), **said, "places": names, "text": found.text})
    else:
        console().print(prompt_tables(found.version, held, names, found.text))


@app.command()
def get(
    prompt: Named,
    var: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A place's value. One for each place.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The text as it was pushed, with its places.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Print a prompt's text with its places filled, and nothing else.

    Example: [bold]aimesh prompts get greeting@champion --var user=Ada[/bold]
    """
    import sys

    from tools.cli.output import print_json
    from tools.cli.prompt_text import fill
    from tools.cli.target import find_mesh

    values = parse_pairs(var or [], "--var")
    found = fetch(find_mesh(state_dir), prompt)
    text = found.text if raw and not values else fill(found.text, values)
    if as_json:
        print_json({"name": found.version.name, "version": found.version.version, "text": text})
    else:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


def fetch(mesh: Mesh, prompt: str) -> registry_pb2.GetVersionResponse:
    """A prompt with its text. Raises NotFoundError, also for what is a model."""
    from aimesh.registry.v1 import registry_pb2
    from meshkit.errors import NotFoundError
    from tools.cli.client import run
    from tools.cli.reference import parse_reference, resolve
    from tools.cli.registry import get_with_text

    found = run(get_with_text(mesh, *run(resolve(mesh, parse_reference(prompt)))))
    if found.version.kind != registry_pb2.KIND_PROMPT:
        raise NotFoundError(
            f"{found.version.name} is a model, not a prompt",
            hint=f"aimesh models show {found.version.name}, or aimesh prompts list",
        )
    return found

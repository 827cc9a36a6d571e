"""`aimesh models history | alias | tag | compat`: what is said of a model, and where it can run."""

from __future__ import annotations

from typing import Annotated

import typer

from tools.cli.models import Named, app
from tools.cli.options import Json, StateDir, parse_pairs

__all__ = ["app"]

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's or prompt's name.")]


@app.command()
def history(name: Name, as_json: Json = False, state_dir: StateDir = None) -> None:
    """All versions of a model or prompt, newest first: when, by whom and from what, what is new, tags and aliases.

    Example: [bold]aimesh models history smollm2[/bold]
    """
    from aimesh.registry.v1 import registry_pb2
    from tools.cli.client import run
    from tools.cli.models_view import history_table, said_of
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.registry import get_model, list_versions
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    held = run(get_model(mesh, name))
    versions = run(list_versions(mesh, name, registry_pb2.KIND_UNSPECIFIED))
    if as_json:
        print_json([{**plain(version), **said_of(held, version.version)} for version in versions])
    else:
        console().print(history_table(versions, held.model))


@app.command()
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as champion.")],
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="The version that it is to stand for.")] = "",
    remove: Annotated[bool, typer.Option("--rm", help="Remove the alias.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Point an alias at a version. A deployment that follows it (aimesh deploy NAME@ALIAS) changes with it.

    Moving it back is the way back: aimesh says which version it stood for.

    Example: [bold]aimesh models alias smollm2 champion 1.2.0[/bold]
    """
    from meshkit.errors import InvalidInputError
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.registry import delete_alias, set_alias
    from tools.cli.target import find_mesh

    if remove == bool(version):
        raise InvalidInputError(
            f"alias {alias} of {name}: give a VERSION, or --rm", hint=f"aimesh models alias {name} {alias} 1.0.0"
        )
    mesh = find_mesh(state_dir)
    if remove:
        model = run(delete_alias(mesh, name, alias))
        print_json(plain(model)) if as_json else console().print(f"{name} has no alias {alias} any more.")
        return
    answer = run(set_alias(mesh, name, alias, version))
    if as_json:
        print_json(plain(answer))
        return
    before = f", before: {answer.previous_version}" if answer.previous_version not in ("", version) else ""
    deployed = f" {', '.join(answer.deployments)} changes with it: aimesh status" if answer.deployments else ""
    console().print(f"{name}@{alias} is {version}{before}.{deployed}")


@app.command()
def tag(
    model: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version.")],
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="Tags to set; KEY- removes one.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Set and remove tags of a version.

    Example: [bold]aimesh models tag smollm2:1.0.0 stage=tested reviewed-[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.reference import exact
    from tools.cli.registry import tag_version
    from tools.cli.target import find_mesh

    name, version = exact(model, "aimesh models tag smollm2:1.0.0 stage=tested")
    tags, gone = parse_changes(changes)
    held = run(tag_version(find_mesh(state_dir), name, version, tags, gone))
    if as_json:
        print_json(plain(held))
        return
    values = held.tags[version].values if version in held.tags else {}
    shown = ", ".join(f"{key}={value}" for key, value in sorted(values.items()))
    console().print(f"{name}:{version}: {shown or 'no tags'}")


@app.command()
def compat(model: Named, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Which nodes can run a version, and what keeps the others from it: runtime, Triton, GPU memory, memory, labels.

    Example: [bold]aimesh models compat smollm2:1.0.0[/bold]
    """
    from tools.cli.client import run
    from tools.cli.models_view import compatibility_table
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.reference import parse_reference, resolve
    from tools.cli.registry import get_compatibility, get_version
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    version = run(get_version(mesh, *run(resolve(mesh, parse_reference(model)))))
    found = run(get_compatibility(mesh, version.name, version.version))
    if as_json:
        print_json({"name": version.name, "runtime": version.runtime, **plain(found)})
        return
    able = sum(node.compatible for node in found.nodes)
    console().print(compatibility_table(found.nodes, version.runtime))
    console().print(f"{version.name}:{version.version} runs on {able} of {len(found.nodes)} nodes.")


def parse_changes(texts: list[str]) -> tuple[dict[str, str], list[str]]:
    """['stage=tested', 'reviewed-'] → ({'stage': 'tested'}, ['reviewed']). Raises InvalidInputError."""

    gone = [text[:-1] for text in texts if text.endswith("-") and "=" not in text]
    return parse_pairs([text for text in texts if "=" in text or not text.endswith("-")], "tag"), gone

"""`aimesh keys create | list | revoke`: API keys for people and programs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tools.cli.options import Json, StateDir

app = typer.Typer(name="keys", help="API keys for people and programs.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="What people call the key.")]


@app.command()
def create(
    name: Name,
    scope: Annotated[list[str], typer.Option(help="read, infer, deploy or admin. Any number of them.")],
    ttl: Annotated[str | None, typer.Option(help="How long it lives: 12h, 90d. For ever when not given.")] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Make an API key. It is shown once: keep it now.

    Scopes: read sees models, nodes and status; infer asks models; deploy reads and changes models, deployments and
    nodes; admin does everything. Commands take the key from AIMESH_API_KEY, other programs send it as
    `authorization: Bearer KEY`.

    Example: [bold]export AIMESH_API_KEY=$(aimesh keys create ci --scope deploy --ttl 90d)[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import call, parse_duration
    from tools.cli.output import print_json, progress_console
    from tools.cli.plain import plain

    request = identity_pb2.CreateKeyRequest(name=name, scopes=[_scope(word) for word in scope])
    if ttl:
        request.ttl.FromTimedelta(parse_duration(ttl))
    answer = run(call(state_dir, "CreateKey", request))
    if as_json:
        print_json({"secret": answer.secret, "key": _shown(answer.key)})
        return
    typer.echo(answer.secret)
    until = plain(answer.key)["expires_at"] or "it is revoked"
    progress_console().print(f"Key {name}, valid until {until}. It is not shown again.", soft_wrap=True)


@app.command(name="list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List API keys, without their secrets.

    Example: [bold]aimesh keys list --json | jq '.[].name'[/bold]
    """
    from rich.table import Table

    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import pages
    from tools.cli.output import console, print_json

    found: list[dict[str, Any]] = []

    async def take(answer: identity_pb2.ListKeysResponse) -> None:
        found.extend(_shown(key) for key in answer.keys)

    run(pages(state_dir, "ListKeys", identity_pb2.ListKeysRequest(page_size=1000), take))
    if as_json:
        print_json(found)
        return
    table = Table("name", "scopes", "until", "made by", "id", box=None)
    for key in found:
        table.add_row(key["name"], " ".join(key["scopes"]), key["expires_at"] or "no end", key["created_by"], key["id"])
    console().print(table if found else "There are no API keys. Make one: aimesh keys create NAME --scope read")


@app.command()
def revoke(name: Name, as_json: Json = False, state_dir: StateDir = None) -> None:
    """End an API key, everywhere within a second.

    Calls to coordinators that are being made with it end too; a stream to a model through the gateway goes on.

    Example: [bold]aimesh keys revoke ci[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import call
    from tools.cli.output import console, print_json

    run(call(state_dir, "RevokeKey", identity_pb2.RevokeKeyRequest(name=name)))
    if as_json:
        print_json({"name": name, "revoked": True})
        return
    console().print(f"Key {name} is revoked.")


def _scope(word: str) -> Any:
    from meshkit import scopes
    from meshkit.errors import InvalidInputError

    known = {scopes.word(scope): scope for scope in scopes.KEY_SCOPES}
    if word not in known:
        raise InvalidInputError(f"scope {word!r} is unknown", hint=f"one of {', '.join(known)}")
    return known[word]


def _shown(key: Any) -> dict[str, Any]:
    from meshkit.scopes import words
    from tools.cli.plain import plain

    found = plain(key)
    found.pop("hash")
    return {**found, "scopes": words(key.scopes)}

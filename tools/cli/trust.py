"""`aimesh trust keygen | add | rm | list | require | sign`: whose signatures of versions count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Callable

    from aimesh.registry.v1 import registry_pb2

app = typer.Typer(name="trust", help="Keys whose signatures of versions count.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="What people call the key.")]


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; the public one goes to FILE.pub.")],
    as_json: Json = False,
) -> None:
    """Make a key to sign versions with. The private half is yours alone: no part of the mesh ever needs it.

    Example: [bold]aimesh trust keygen release.key[/bold]
    """
    from meshkit.signing import generate, key_id
    from tools.cli.output import console, print_json

    made = key_id(generate(file))
    if as_json:
        print_json({"private": str(file), "public": f"{file}.pub", "key_id": made})
        return
    console().print(f"Made {file} and {file}.pub (key {made}). Next: aimesh trust add NAME {file}.pub", soft_wrap=True)


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The public key: FILE.pub.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Trust a key: versions that it signed count as signed.

    Example: [bold]aimesh trust add release release.key.pub[/bold]
    """
    from aimesh.registry.v1 import registry_pb2
    from meshkit.signing import load_public

    key = registry_pb2.TrustedKey(name=name, public_key=load_public(file))

    def change(trust: registry_pb2.Trust) -> None:
        trust.keys.append(key)

    _show(_changed(state_dir, change), as_json=as_json)


@app.command()
def rm(name: Name, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Trust a key no longer. What is loaded goes on; with `require on` what it alone signed is not loaded again.

    Example: [bold]aimesh trust rm release[/bold]
    """
    from meshkit.errors import NotFoundError

    def change(trust: registry_pb2.Trust) -> None:
        kept = [key for key in trust.keys if key.name != name]
        if len(kept) == len(trust.keys):
            raise NotFoundError(f"no trusted key is called {name!r}", hint="see: aimesh trust list")
        del trust.keys[:]
        trust.keys.extend(kept)

    _show(_changed(state_dir, change), as_json=as_json)


@app.command(name="list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show the trusted keys, and whether versions must be signed.

    Example: [bold]aimesh trust list[/bold]
    """
    _show(_changed(state_dir, None), as_json=as_json)


@app.command()
def require(
    word: Annotated[Literal["on", "off"], typer.Argument(help="on: no node loads a version that nobody signed.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Take signed versions only, or any. What is loaded goes on serving; names what is deployed and not signed.

    Example: [bold]aimesh trust require on[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import progress_console
    from tools.cli.target import find_mesh
    from tools.cli.trusting import unsigned_deployed

    def change(trust: registry_pb2.Trust) -> None:
        trust.signed_only = word == "on"

    trust = _changed(state_dir, change)
    _show(trust, as_json=as_json)
    for named in run(unsigned_deployed(find_mesh(state_dir), trust)) if trust.signed_only else ():
        progress_console().print(
            f"{named} is deployed and not signed: it serves on, and is not loaded again. "
            f"Sign it: aimesh trust sign {named} --key FILE",
            soft_wrap=True,
        )


@app.command()
def sign(
    model: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version to vouch for.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key of a trusted pair.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Sign a version that is recorded. You vouch for what the registry shows: look at it first (aimesh models show).

    Example: [bold]aimesh trust sign smollm2:1.0.0 --key release.key[/bold]
    """
    from meshkit.signing import key_id, load_private, raw_public
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.reference import exact
    from tools.cli.target import find_mesh
    from tools.cli.trusting import sign_version

    private = load_private(key)
    name, version = exact(model, "aimesh trust sign smollm2:1.0.0 --key FILE")
    signed = run(sign_version(find_mesh(state_dir), name, version, private))
    if as_json:
        print_json(plain(signed))
        return
    console().print(f"Signed {name}:{version} with key {key_id(raw_public(private))}.")


def _changed(state_dir: Path | None, change: Callable[[registry_pb2.Trust], None] | None) -> registry_pb2.Trust:
    from tools.cli.client import run
    from tools.cli.target import find_mesh
    from tools.cli.trusting import change_trust

    return run(change_trust(find_mesh(state_dir), change))


def _show(trust: registry_pb2.Trust, *, as_json: bool) -> None:
    from rich.table import Table

    from meshkit.signing import key_id
    from tools.cli.output import console, print_json

    keys: list[dict[str, Any]] = [
        {"name": key.name, "key_id": key_id(key.public_key), "public_key": key.public_key.hex()} for key in trust.keys
    ]
    if as_json:
        print_json({"signed_only": trust.signed_only, "keys": keys})
        return
    table = Table("name", "key", box=None)
    for key in keys:
        table.add_row(key["name"], key["key_id"])
    console().print(table if keys else "No key is trusted. Make one: aimesh trust keygen FILE")
    console().print("Only signed versions are loaded." if trust.signed_only else "Versions need not be signed.")

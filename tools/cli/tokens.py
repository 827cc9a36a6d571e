"""`aimesh tokens create | list | revoke`: join tokens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tools.cli.options import Json, StateDir

app = typer.Typer(
    name="tokens", help="Join tokens: each lets one machine get a certificate, once.", no_args_is_help=True
)


@app.command()
def create(
    node_id: Annotated[
        str, typer.Option(help="The one node that may use it; any that is not known yet when not given.")
    ] = "",
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="An IP address or host name that the certificate may carry. Any number. The address that "
            "the machine calls from needs none."
        ),
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it lives: 15m, 1h, 7d.")] = "1h",
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Make a join token. It is shown once.

    Example: [bold]aimesh tokens create --node-id gpu-7 --ttl 15m[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import call, parse_duration
    from tools.cli.output import print_json, progress_console
    from tools.cli.plain import plain

    request = identity_pb2.CreateJoinTokenRequest(node_id=node_id, names=name or ())
    request.ttl.FromTimedelta(parse_duration(ttl))
    answer = run(call(state_dir, "CreateJoinToken", request))
    if as_json:
        print_json({"secret": answer.secret, "token": _shown(answer.token)})
        return
    typer.echo(answer.secret)
    until = plain(answer.token)["expires_at"]
    progress_console().print(
        f"Good once, until {until}, for {node_id or 'any new node'}. On that machine: AIMESH_JOIN_TOKEN=... "
        f"aimesh enroll --coordinator HOST:ENROLL_PORT --ca ca.pem --node-id {node_id or 'ID'} --out DIR",
        soft_wrap=True,
    )


@app.command(name="list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List join tokens that were not used and have not expired.

    Example: [bold]aimesh tokens list[/bold]
    """
    from rich.table import Table

    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import pages
    from tools.cli.output import console, print_json

    found: list[dict[str, Any]] = []

    async def take(answer: identity_pb2.ListJoinTokensResponse) -> None:
        found.extend(_shown(token) for token in answer.tokens)

    run(pages(state_dir, "ListJoinTokens", identity_pb2.ListJoinTokensRequest(page_size=1000), take))
    if as_json:
        print_json(found)
        return
    table = Table("id", "node", "names", "until", "made by", box=None)
    for token in found:
        table.add_row(
            token["id"], token["node_id"] or "(any)", " ".join(token["names"]), token["expires_at"], token["created_by"]
        )
    console().print(table if found else "There are no join tokens. Make one: aimesh tokens create --node-id ID")


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id: t-...")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """End a join token.

    Example: [bold]aimesh tokens revoke t-0123456789abcdef[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import call
    from tools.cli.output import console, print_json

    run(call(state_dir, "RevokeJoinToken", identity_pb2.RevokeJoinTokenRequest(id=token_id)))
    if as_json:
        print_json({"id": token_id, "revoked": True})
        return
    console().print(f"Token {token_id} is revoked.")


def _shown(token: Any) -> dict[str, Any]:
    from tools.cli.plain import plain

    found = plain(token)
    found.pop("hash")
    return found

"""`aimesh enroll`: a machine's first certificate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tools.cli.options import Json


def enroll(
    coordinator: Annotated[str, typer.Option(metavar="HOST:PORT", help="A coordinator's enrolment port.")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="The mesh's authority: ca.pem of aimesh ca init.")],
    node_id: Annotated[str, typer.Option(help="This node's id; agent.node_id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where ca.pem, cert.pem and key.pem go.")],
    token: Annotated[
        str, typer.Option(help="Of `aimesh tokens create`. Better in AIMESH_JOIN_TOKEN: others see command lines.")
    ] = "",
    ip: Annotated[
        list[str] | None, typer.Option("--ip", help="An address at which others reach this machine. Any number.")
    ] = None,
    dns: Annotated[list[str] | None, typer.Option("--dns", help="A host name of this machine. Any number.")] = None,
    as_json: Json = False,
) -> None:
    """Get this machine's first certificate with a join token. Its key is made here and never leaves it.

    Example: [bold]aimesh enroll --coordinator 10.0.0.1:8504 --ca ca.pem --node-id gpu-7 --ip 10.0.0.7
    --out /etc/aimesh/tls/agent[/bold]
    """
    from meshkit.certificates import make_names
    from meshkit.errors import InvalidInputError, NotFoundError
    from meshkit.tls import Identity
    from tools.cli import renewal
    from tools.cli.ca import described, written
    from tools.cli.client import run
    from tools.cli.output import console, print_json

    token = token or os.environ.get("AIMESH_JOIN_TOKEN", "")
    if not token:
        raise InvalidInputError(
            "no join token", hint="set AIMESH_JOIN_TOKEN; an administrator makes one: aimesh tokens create"
        )
    try:
        authority = ca.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {ca}: {error.strerror}", hint="copy ca.pem from the authority") from None
    names = make_names(Identity("node", node_id), ip or (), dns or ())
    certificate = run(renewal.enroll(coordinator, authority, token, names, out))
    if as_json:
        print_json({**described(certificate), **written(out)})
        return
    console().print(
        f"Wrote ca.pem, cert.pem and key.pem for {names.identity.uri} to {out}, valid until "
        f"{certificate.not_valid_after_utc:%Y-%m-%d}.\n"
        "Name them in [agent.tls] of the agent's configuration; renew in time: aimesh ca renew --help",
        soft_wrap=True,
    )

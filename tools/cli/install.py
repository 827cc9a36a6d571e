"""`aimesh install`: a role of the mesh under systemd on this host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from tools.cli.options import Json


def install(
    role: Annotated[
        Literal["agent", "coordinator", "gateway", "etcd"],
        typer.Option(help="What this host is to run. A host may have several: install each."),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="NAME", help="This node's, coordinator's, gateway's or member's name; the host's."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="IP", help="Address that others use. Other than loopback it needs TLS, or --insecure."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="8503 for coordinators, 8500 gateways, 8001 agents (Triton's gRPC), 2379 etcd.", min=1),
    ] = None,
    coordinators: Annotated[
        str | None, typer.Option(metavar="HOST:PORT,...", help="All coordinators; for agents and gateways.")
    ] = None,
    etcd: Annotated[
        str | None, typer.Option(metavar="HOST:PORT,...", help="All members of etcd; for coordinators.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME=IP,...", help="All members of etcd, this one among them; for etcd.")
    ] = None,
    enroll: Annotated[
        bool, typer.Option("--enroll", help="A coordinator that has the authority's key and gives certificates.")
    ] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, on a network that is trusted.")] = False,
    program: Annotated[
        Path | None, typer.Option(metavar="FILE", help="aimesh's program, or etcd's for etcd. This one by itself.")
    ] = None,
    root: Annotated[Path, typer.Option(metavar="DIR", help="Install into an image or a chroot.")] = Path("/"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace a configuration that was changed; keeps it as .old.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every file and every command; change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Install a role under systemd: unit, user, directories and configuration. Needs root, but for --dry-run.

    Again with the same options it changes nothing. After an upgrade, --role alone brings the unit up to date and leaves
    the configuration as it is.

    Example: [bold]aimesh install --role agent --address 10.0.0.11 --coordinators 10.0.0.1:8503 --dry-run[/bold]
    """
    from meshkit.errors import PreconditionError
    from tools.systemd.apply import apply_plan
    from tools.systemd.given import Given, plan_for, require_visible
    from tools.systemd.view import show_done, show_plan

    given = Given(name, address, port, coordinators, etcd, cluster, enroll, insecure)
    plan = plan_for(role, given, program, root)
    if dry_run:
        show_plan(plan, root, as_json=as_json)
        return
    if os.geteuid() != 0:
        raise PreconditionError(
            "aimesh install writes into /etc and makes a user", hint="run it as root, or with --dry-run to look"
        )
    require_visible(role, program, root)
    show_done(plan, apply_plan(plan, root, force=force), root, as_json=as_json)

"""`aimesh up`, `down`, `status` and `env`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from tools.local.record import MeshRecord
    from tools.local.supervisor import Request


def up(
    nodes: Annotated[
        int | None, typer.Option(help="Nodes, each with its own agent and Triton. As last time, or 1.", min=1)
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the mesh is ready; it runs on.")] = False,
    state_dir: StateDir = None,
    port_base: Annotated[
        int | None, typer.Option(help="First of the mesh's ports. As last time, or the first free block from 8500.")
    ] = None,
    coordinators: Annotated[int | None, typer.Option(help="Coordinators. As last time, or 1.", min=1)] = None,
    etcd: Annotated[int | None, typer.Option(help="Members of etcd, 1 or 3. As last time, or 1.", min=1)] = None,
    tls: Annotated[
        bool | None,
        typer.Option("--tls/--no-tls", help="mTLS on every link, API keys at the gateway. As last time, or without."),
    ] = None,
) -> None:
    """Start a whole mesh on this machine: etcd, coordinators, agents with Triton, a gateway.

    Without --detach it runs until Ctrl-C. Models, deployments and ports are kept for the next time.

    Example: [bold]aimesh up --nodes 3 --coordinators 3 --etcd 3 --detach[/bold]
    """
    from tools.cli.output import console
    from tools.cli.progress import PartsView
    from tools.local import control
    from tools.local.supervisor import Request

    request = Request(_local_dir(state_dir), nodes, port_base, coordinators, etcd, tls)
    already = control.running_as_asked(request)
    if already is not None:
        console().print(f"A mesh runs in {request.state_dir} already.")
        with PartsView() as view:
            already = control.wait_ready(request.state_dir, view.show)
        _say_how_to_reach(already)
    elif detach:
        with PartsView() as view:
            record = control.up_detached(request, view.show)
        _say_how_to_reach(record)
    else:
        _run_in_foreground(request)


def down(state_dir: StateDir = None) -> None:
    """Stop the mesh of this machine: gateway, agents (they drain), coordinator, etcd. Its data stays.

    Works also when its supervisor was killed, and twice.

    Example: [bold]aimesh down --state-dir /tmp/mesh[/bold]
    """
    from tools.cli.output import console
    from tools.cli.progress import PartsView
    from tools.local import control

    directory = _local_dir(state_dir)
    with PartsView() as view:
        found = control.down(directory, view.show)
    console().print(f"The mesh in {directory} is down." if found else f"No mesh runs in {directory}.", soft_wrap=True)


def status(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it until Ctrl-C.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Show nodes, coordinators, deployments and the gateway.

    Example: [bold]aimesh status --json | jq '.nodes[].state'[/bold]
    """
    from tools.cli import status_command
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    if watch:
        status_command.watch(mesh, as_json=as_json)
    else:
        status_command.show(mesh, as_json=as_json)


def env(state_dir: StateDir = None) -> None:
    """Print the exports that let any gRPC program in this shell reach the mesh.

    Example: [bold]eval "$(aimesh env)" && python my_client.py[/bold]
    """
    from tools.cli.environment import export_lines
    from tools.cli.target import find_mesh

    for line in export_lines(find_mesh(state_dir)):
        typer.echo(line)


def _run_in_foreground(request: Request) -> None:
    from meshkit.logs import LogSettings, configure_logs
    from tools.cli.progress import PartsView
    from tools.local import control

    configure_logs(LogSettings(level="error", format="text"))  # the view says the rest
    said = False
    with PartsView(goes_on=True) as view:

        def listener(record: MeshRecord) -> None:
            nonlocal said
            view.show(record)
            if record.ready and not said:
                said = True
                _say_how_to_reach(record)

        control.up_foreground(request, listener)


def _local_dir(state_dir: Path | None) -> Path:
    from meshkit.errors import InvalidInputError
    from tools.local.record import default_state_dir

    found = (state_dir or default_state_dir(os.environ)).absolute()
    if found.exists() and not found.is_dir():
        raise InvalidInputError(f"state directory {found} is a file", hint="name a directory with --state-dir")
    return found


def _say_how_to_reach(record: MeshRecord) -> None:
    from tools.cli.output import console

    directory = record.layout.state_dir
    chosen = "" if directory == _local_dir(None) else f" --state-dir {directory}"
    console().print(
        f"The mesh is ready: gateway {record.layout.gateway}, coordinators {', '.join(record.layout.coordinators)}.\n"
        f"  aimesh status{chosen}          what runs where\n"
        f'  eval "$(aimesh env{chosen})"   let any gRPC program in this shell reach it\n'
        f"  aimesh down{chosen}            stop it",
        soft_wrap=True,
    )

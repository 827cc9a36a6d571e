"""`aimesh drain`, `undrain` and `nodes forget`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from tools.cli.draining import Draining
    from tools.cli.target import Mesh

app = typer.Typer(name="nodes", help="Nodes that are gone.", no_args_is_help=True)
Node = Annotated[str, typer.Argument(help="The node's id, as aimesh status shows it.")]


def drain(
    node: Node,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the node is empty.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0.1)] = 300.0,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Empty a node: its models are served elsewhere first, then leave it, and no request is lost.

    It takes nothing new until aimesh undrain, also after restarts. Exit code 7 when models have nowhere to go: those
    stay and serve.

    Example: [bold]aimesh drain node-1 && ssh node-1 reboot[/bold]
    """
    from tools.cli.client import run
    from tools.cli.draining import draining_json, order
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    draining = run(order(mesh, node))
    if wait:
        draining = _wait_with_progress(mesh, node, timeout)
    if as_json:
        print_json(draining_json(draining))
    elif draining.empty:
        console().print(f"{node} is empty. To use it again: aimesh undrain {node}")
    else:
        console().print(f"{node} is being drained: {draining.describe()}.")


def undrain(node: Node, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Let a drained node take models again. What it had does not come back by itself.

    Example: [bold]aimesh undrain node-1[/bold]
    """
    from tools.cli.client import run
    from tools.cli.draining import take_back
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh

    run(take_back(find_mesh(state_dir), node))
    if as_json:
        print_json({"node": node, "drained": False})
    else:
        console().print(f"{node} takes models again.")


@app.command()
def forget(node: Node, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Declare a silent node dead for good: its models move, and it leaves status, routes and the brake's count.

    When its agent comes back it joins as any other. Exit code 5 while its agent is in session.

    Example: [bold]aimesh nodes forget node-7[/bold]
    """
    from tools.cli.client import run
    from tools.cli.draining import forget as forget_node
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh

    run(forget_node(find_mesh(state_dir), node))
    if as_json:
        print_json({"node": node, "forgotten": True})
    else:
        console().print(f"{node} is forgotten.")


def _wait_with_progress(mesh: Mesh, node: str, timeout_s: float) -> Draining:
    """Waits until the node is empty, showing on standard error what is left."""
    from rich.text import Text

    from tools.cli.client import run
    from tools.cli.draining import wait_empty
    from tools.cli.output import progress_console

    terminal, said = progress_console(), ""
    with terminal.status(node) as status:

        def tell(draining: Draining) -> None:
            nonlocal said
            line = f"{node}  {draining.describe()}"
            status.update(Text(line))
            if not terminal.is_terminal and line != said:
                terminal.print(line)
            said = line

        return run(wait_empty(mesh, node, timeout_s, tell))

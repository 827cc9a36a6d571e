"""`aimesh deploy` and `undeploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.models import Named
from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from aimesh.routing.v1 import routing_pb2
    from tools.cli.placement import Fare
    from tools.cli.target import Mesh


def deploy(
    model: Named,
    replicas: Annotated[int, typer.Option(help="Nodes that serve it.", min=1)] = 1,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="How requests travel: a RoutePolicy in TOML, YAML or JSON. As it was when not given.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every replica answers.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0.1)] = 300.0,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Serve a model on the nodes that fit. Clients reach it at the gateway, or at xds:///NAME.

    Exit code 7 when not all replicas found a place (those that did, serve), 5 when a replica failed to load.

    NAME@ALIAS follows the alias: whenever it is moved (aimesh models alias), so is the deployment.

    A split between versions is made with: aimesh routes set

    Example: [bold]aimesh deploy smollm2:1.0.0 --replicas 2 --policy chat.toml[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.placement import apply, counted, no_place
    from tools.cli.plain import plain
    from tools.cli.policy_file import read_policy
    from tools.cli.reference import parse_reference
    from tools.cli.routes import warn
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    named = parse_reference(model)
    name = named.name
    wanted = read_policy(policy) if policy is not None else None
    answer = run(apply(mesh, name, named.version, replicas, wanted, named.alias))
    target = answer.status.targets[0]
    if not as_json:
        warn(answer.partial_rules)
    if wait:
        target = wait_with_progress(mesh, name, target.version, timeout)
    if len(target.nodes) < target.wanted and target.rejections:
        raise no_place(name, target)
    if as_json:
        partial = [plain(rule) for rule in answer.partial_rules]
        print_json({"name": name, **plain(target), "partial_rules": partial})
    else:
        nodes = f" on {', '.join(target.nodes)}" if target.nodes else ""
        console().print(f"{name}:{target.version}: {counted(target, f'replicas ready{nodes}')}.")


def undeploy(
    name: Annotated[str, typer.Argument(help="The deployment's name.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Stop serving a model. Its versions stay recorded.

    Example: [bold]aimesh undeploy smollm2[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.placement import remove
    from tools.cli.target import find_mesh

    run(remove(find_mesh(state_dir), name))
    if as_json:
        print_json({"name": name, "undeployed": True})
        return
    console().print(f"{name} is no longer deployed.")


def wait_with_progress(mesh: Mesh, name: str, version: str, timeout_s: float) -> routing_pb2.TargetStatus:
    """Waits until every replica answers, showing on standard error what each node does."""
    from rich.text import Text

    from tools.cli.client import run
    from tools.cli.output import progress_console
    from tools.cli.placement import describe, wait_placed

    terminal, said = progress_console(), ""
    with terminal.status(f"{name}:{version}") as status:

        def tell(fare: Fare) -> None:
            nonlocal said
            line = f"{name}:{version}  {describe(fare)}"
            status.update(Text(line))
            if not terminal.is_terminal and line != said:
                terminal.print(line)
            said = line

        return run(wait_placed(mesh, name, version, timeout_s, tell))

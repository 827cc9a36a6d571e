"""`aimesh routes explain | show | set`: how requests travel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aimesh.routing.v1 import routing_pb2

app = typer.Typer(name="routes", help="How requests travel to a model's replicas.", no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="The deployment's name.")]
Policy = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="How requests travel: a RoutePolicy in TOML, YAML or JSON. An empty file resets it."
    ),
]
Split = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VERSION|@ALIAS=WEIGHT", help="A version's share of the requests, or an alias'. Any number; 0 for none."
    ),
]


@app.command()
def explain(
    model: Model,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="A header of the request.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Where a request would go at this moment and why, and what each rule of the policy comes to.

    Example: [bold]aimesh routes explain chat --header x-tenant=acme[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.routes_view import explained
    from tools.cli.routing import explain_route, parse_headers
    from tools.cli.target import find_mesh

    headers = parse_headers(header or [])
    found = run(explain_route(find_mesh(state_dir), model, headers))
    if as_json:
        print_json({"name": model, "headers": headers, **plain(found)})
    else:
        console().print(explained(model, headers, found))


@app.command()
def show(model: Model, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show a deployment's versions, weights and rules. With --json, the key policy is what --policy takes.

    Example: [bold]aimesh routes show chat --json | jq .policy > policy.json[/bold]
    """
    from google.protobuf import json_format

    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.routes_view import shown
    from tools.cli.routing import show_route
    from tools.cli.target import find_mesh

    deployment, rules = run(show_route(find_mesh(state_dir), model))
    if not as_json:
        console().print(shown(deployment, rules))
        return
    policy = json_format.MessageToDict(deployment.policy, preserving_proto_field_name=True)
    targets = [plain(target) for target in deployment.targets]
    print_json({"name": model, "targets": targets, "policy": policy, "rules": [plain(rule) for rule in rules]})


@app.command(name="set")
def set_(
    model: Model,
    policy: Policy = None,
    split: Split = None,
    replicas: Annotated[
        int | None, typer.Option(help="Nodes for each version of the split; as many as before when not given.", min=1)
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Change how a deployment's requests travel: its policy, its split between versions, or both.

    Example: [bold]aimesh routes set chat --split 1.0.0=90 --split 2.0.0=10 --policy chat.toml[/bold]
    """
    from meshkit.errors import InvalidInputError
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.policy_file import read_policy
    from tools.cli.routing import change_route, parse_split
    from tools.cli.target import find_mesh

    if policy is None and not split:
        raise InvalidInputError("nothing to change", hint="give --policy FILE, --split VERSION=WEIGHT, or both")
    wanted = read_policy(policy) if policy is not None else None
    answer = run(change_route(find_mesh(state_dir), model, wanted, parse_split(split or []), replicas))
    if as_json:
        print_json(plain(answer))
        return
    warn(answer.partial_rules)
    weights = ", ".join(f"{target.version} = {target.weight}" for target in answer.status.deployment.targets)
    console().print(f"{model}: {weights}. To see what becomes of a request: aimesh routes explain {model}")


def warn(rules: Sequence[routing_pb2.RuleEffect]) -> None:
    """Says on standard error which rules hold in one of the engines only, or in another way."""
    from tools.cli.output import progress_console

    for rule in rules:
        progress_console().print(f"note: {rule.rule}: through xds:///, {rule.programs}", soft_wrap=True)

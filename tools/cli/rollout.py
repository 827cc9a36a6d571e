"""`aimesh rollout`: from one version to another in steps that are judged, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir
from tools.cli.rollout_calibrate import calibrate
from tools.cli.rollout_options import asking

if TYPE_CHECKING:
    from aimesh.rollout.v1 import rollout_pb2
    from tools.cli.rollout_client import Verb
    from tools.cli.rollout_spec import Asked
    from tools.cli.target import Mesh

app = typer.Typer(name="rollout", help="Change a model's version in steps that are judged.", no_args_is_help=True)
app.command()(calibrate)

Name = Annotated[str, typer.Argument(help="The deployment's name.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]


@app.command()
@asking
def plan(asked: Asked, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show what a rollout would do: its steps, the time it takes, the time back, and what stands in its way.

    Example: [bold]aimesh rollout plan chat:1.1.0 --strategy canary --steps 5,50,100[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.rollout_client import plan_rollout
    from tools.cli.rollout_view import planned
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    spec = _spec(mesh, asked)
    found = run(plan_rollout(mesh, spec))
    if as_json:
        print_json(plain(found))
    else:
        console().print(planned(spec, found))


@app.command()
@asking
def start(
    asked: Asked,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; it goes on by itself.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it starts.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show the plan, start it, and follow it to its end. Ctrl-C ends the following and not the rollout.

    Exit code 5 when it is rolled back, or cannot be started as things are.

    Example: [bold]aimesh rollout start chat:1.1.0 --strategy canary --steps 5,25,50,100 --hold 30s[/bold]
    """
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    started = _start(mesh, _spec(mesh, asked), yes=yes or as_json, quiet=as_json)
    _go_on(mesh, started, detach=detach, as_json=as_json)


@app.command()
def pause(name: Name, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """Stop a rollout at the weights it has.

    Example: [bold]aimesh rollout pause chat --reason "waiting for the night"[/bold]
    """
    _steer("pause", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def resume(name: Name, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """Go on after a pause or a hold; the step's time begins anew.

    Example: [bold]aimesh rollout resume chat[/bold]
    """
    _steer("resume", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def promote(
    name: Name,
    reason: Reason = "",
    version: Annotated[str, typer.Option(help="The winner, when it is an experiment.")] = "",
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Go to the last step at once, past every gate.

    Example: [bold]aimesh rollout promote chat --reason "checked by hand"[/bold]
    """
    _steer("promote", name, reason, version=version, as_json=as_json, state_dir=state_dir)


@app.command()
def abort(name: Name, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """Go back to what was there before.

    Example: [bold]aimesh rollout abort chat --reason "wrong weights"[/bold]
    """
    _steer("abort", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def undo(name: Name, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """Start a rollout back to what was there before one that succeeded.

    Example: [bold]aimesh rollout undo chat[/bold]
    """
    _steer("undo", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def watch(name: Name, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Follow a rollout to its end: steps, weights, measurements and the reason for each decision.

    With --json, one document a line at each change.

    Example: [bold]aimesh rollout watch chat[/bold]
    """
    from tools.cli.rollout_follow import follow_json, follow_live
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    if as_json:
        follow_json(mesh, name)
    else:
        follow_live(mesh, name)


@app.command()
def status(name: Name, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show the newest rollout of a deployment.

    Example: [bold]aimesh rollout status chat --json | jq .rollout.state[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.rollout_client import get_rollout
    from tools.cli.rollout_view import shown
    from tools.cli.target import find_mesh

    found = run(get_rollout(find_mesh(state_dir), name))
    if as_json:
        print_json(plain(found))
    else:
        console().print(shown(found.rollout, found.comparisons))


@app.command(name="list")
def list_(as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show the newest rollout of each deployment.

    Example: [bold]aimesh rollout list[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.rollout_client import list_rollouts
    from tools.cli.rollout_view import listed
    from tools.cli.target import find_mesh

    found = run(list_rollouts(find_mesh(state_dir)))
    if as_json:
        print_json({"rollouts": [plain(rollout) for rollout in found]})
    else:
        console().print(listed(found))


def _spec(mesh: Mesh, asked: Asked) -> rollout_pb2.RolloutSpec:
    """The rollout; its evaluation set is uploaded, since the mesh looks into it before anything starts."""
    from tools.cli.client import run
    from tools.cli.rollout_spec import read
    from tools.cli.upload import send_file

    spec, dataset = read(asked)
    if dataset is not None:
        run(send_file(mesh, spec.gates.evaluation.dataset, dataset))
    return spec


def _start(mesh: Mesh, spec: rollout_pb2.RolloutSpec, *, yes: bool, quiet: bool) -> rollout_pb2.Rollout:
    """Shows the plan, asks, and starts."""
    from tools.cli.client import run
    from tools.cli.output import console
    from tools.cli.rollout_client import plan_rollout, start_rollout
    from tools.cli.rollout_view import planned

    if not quiet:
        console().print(planned(spec, run(plan_rollout(mesh, spec))))
        if not yes and console().is_terminal:
            typer.confirm("Start it?", abort=True)
    return run(start_rollout(mesh, spec)).rollout


def _go_on(mesh: Mesh, rollout: rollout_pb2.Rollout, *, detach: bool, as_json: bool) -> None:
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.rollout_follow import follow_live, follow_quietly
    from tools.cli.rollout_view import headline

    name = rollout.spec.name
    if detach:
        if as_json:
            print_json(plain(rollout))
        else:
            console().print(headline(rollout))
            console().print(f"To follow it: aimesh rollout watch {name}")
    elif as_json:
        follow_quietly(mesh, name)
    else:
        follow_live(mesh, name)


def _steer(verb: Verb, name: str, reason: str, *, as_json: bool, state_dir: Path | None, version: str = "") -> None:
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.rollout_client import steer
    from tools.cli.rollout_view import headline
    from tools.cli.target import find_mesh

    found = run(steer(find_mesh(state_dir), verb, name, reason, version))
    if as_json:
        print_json(plain(found))
    else:
        console().print(headline(found))

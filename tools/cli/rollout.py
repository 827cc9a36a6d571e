"""`aimesh rollout`: from one version to another in steps that are judged, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir
from tools.cli.rollout_calibrate import calibrate

if TYPE_CHECKING:
    from aimesh.rollout.v1 import rollout_pb2
    from tools.cli.rollout_client import Verb
    from tools.cli.rollout_spec import Asked
    from tools.cli.target import Mesh

app = typer.Typer(name="rollout", help="Change a model's version in steps that are judged.", no_args_is_help=True)
app.command()(calibrate)

Goal = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="An experiment needs no version: it has arms.")]
Name = Annotated[str, typer.Argument(help="The deployment's name.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]
Strategy = Annotated[str, typer.Option(help="rolling, blue-green, canary, shadow or experiment.")]
Steps = Annotated[str, typer.Option(metavar="PERCENTS", help="Canary: rising, the last 100. Default 5,25,50,100.")]
Hold = Annotated[str, typer.Option(metavar="TIME", help="Canary: how long each step lasts at least. Default 30s.")]
Keep = Annotated[str, typer.Option(metavar="TIME", help="Blue-green: how long the old stays loaded. Default 5m.")]
Percent = Annotated[float, typer.Option(help="Shadow: share of the requests that is copied. Default 100.")]
Duration = Annotated[str, typer.Option(metavar="TIME", help="Shadow (default 60s), experiment (default 10m).")]
Arms = Annotated[list[str] | None, typer.Option("--arm", metavar="VERSION=PERCENT", help="Experiment: two or more.")]
Header = Annotated[str, typer.Option(metavar="NAME", help="Experiment: the header that names the caller.")]
GatesFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What is judged: TOML, or a policy in a .rego file.")
]
NoGates = Annotated[bool, typer.Option("--no-gates", help="Judge nothing: steps follow by time alone.")]
Inconclusive = Annotated[str, typer.Option(help="Without telling: hold (default), promote or rollback.")]
Replicas = Annotated[int, typer.Option(help="Of the new version at the end; as many as now when not given.", min=0)]
Surge = Annotated[int | None, typer.Option(help="Replicas beyond those wanted; as many as fit when not given.", min=0)]
Unavailable = Annotated[int | None, typer.Option(help="Replicas that may be missing; 0 when there is room.", min=0)]
StepTimeout = Annotated[str, typer.Option(metavar="TIME", help="For loading and acknowledging. Default 10m.")]
Watch = Annotated[str, typer.Option(metavar="TIME", help="Watch it so long afterwards, and take it back if worse.")]
Downgrade = Annotated[bool, typer.Option("--allow-downgrade", help="The version may be lower than what runs.")]


@app.command()
def plan(  # a rollout has that many sides
    model: Goal,
    strategy: Strategy = "canary",
    steps: Steps = "",
    hold: Hold = "",
    keep: Keep = "",
    percent: Percent = 0.0,
    duration: Duration = "",
    arm: Arms = None,
    header: Header = "",
    gates: GatesFile = None,
    no_gates: NoGates = False,
    inconclusive: Inconclusive = "",
    replicas: Replicas = 0,
    max_surge: Surge = None,
    max_unavailable: Unavailable = None,
    step_timeout: StepTimeout = "",
    watch: Watch = "",
    allow_downgrade: Downgrade = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show what a rollout would do: its steps, the time it takes, the time back, and what stands in its way.

    Example: [bold]aimesh rollout plan chat:1.1.0 --strategy canary --steps 5,50,100[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.rollout_client import plan_rollout
    from tools.cli.rollout_spec import Asked, spec_of
    from tools.cli.rollout_view import planned
    from tools.cli.target import find_mesh

    name, version = _split(model)
    asked = Asked(
        name,
        version,
        strategy,
        steps,
        hold,
        keep,
        percent,
        duration,
        arm or (),
        header,
        gates,
        no_gates,
        inconclusive,
        replicas,
        max_surge,
        max_unavailable,
        step_timeout,
        watch,
        allow_downgrade,
    )
    spec = spec_of(asked)
    found = run(plan_rollout(find_mesh(state_dir), spec))
    if as_json:
        print_json(plain(found))
    else:
        console().print(planned(spec, found))


@app.command()
def start(  # a rollout has that many sides
    model: Goal,
    strategy: Strategy = "canary",
    steps: Steps = "",
    hold: Hold = "",
    keep: Keep = "",
    percent: Percent = 0.0,
    duration: Duration = "",
    arm: Arms = None,
    header: Header = "",
    gates: GatesFile = None,
    no_gates: NoGates = False,
    inconclusive: Inconclusive = "",
    replicas: Replicas = 0,
    max_surge: Surge = None,
    max_unavailable: Unavailable = None,
    step_timeout: StepTimeout = "",
    watch: Watch = "",
    allow_downgrade: Downgrade = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; it goes on by itself.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it starts.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show the plan, start it, and follow it to its end. Ctrl-C ends the following and not the rollout.

    Exit code 5 when it is rolled back, or cannot be started as things are.

    Example: [bold]aimesh rollout start chat:1.1.0 --strategy canary --steps 5,25,50,100 --hold 30s[/bold]
    """
    from tools.cli.rollout_spec import Asked
    from tools.cli.target import find_mesh

    name, version = _split(model)
    asked = Asked(
        name,
        version,
        strategy,
        steps,
        hold,
        keep,
        percent,
        duration,
        arm or (),
        header,
        gates,
        no_gates,
        inconclusive,
        replicas,
        max_surge,
        max_unavailable,
        step_timeout,
        watch,
        allow_downgrade,
    )
    mesh = find_mesh(state_dir)
    started = _start(mesh, asked, yes=yes or as_json, quiet=as_json)
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


def _start(mesh: Mesh, asked: Asked, *, yes: bool, quiet: bool) -> rollout_pb2.Rollout:
    """Shows the plan, asks, and starts."""
    from tools.cli.client import run
    from tools.cli.output import console
    from tools.cli.rollout_client import plan_rollout, start_rollout
    from tools.cli.rollout_spec import spec_of
    from tools.cli.rollout_view import planned

    spec = spec_of(asked)
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


def _split(model: str) -> tuple[str, str]:
    name, _, version = model.partition(":")
    return name, version

"""The options of `aimesh rollout plan` and `start`: one definition for both."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from tools.cli.rollout_spec import Asked

Goal = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="An experiment needs no version: it has arms.")]
Strategy = Annotated[str, typer.Option(help="rolling, blue-green, canary, shadow or experiment.")]
Steps = Annotated[str, typer.Option(metavar="PERCENTS", help="Canary: rising, the last 100. Default 5,25,50,100.")]
Hold = Annotated[str, typer.Option(metavar="TIME", help="Canary: how long each step lasts at least. Default 30s.")]
Keep = Annotated[str, typer.Option(metavar="TIME", help="Blue-green: how long the old stays loaded. Default 5m.")]
Percent = Annotated[
    float, typer.Option(help="Shadow: share of the requests that is copied. Default 100.", show_default=False)
]
Duration = Annotated[str, typer.Option(metavar="TIME", help="Shadow (default 60s), experiment (default 10m).")]
Arms = Annotated[list[str] | None, typer.Option("--arm", metavar="VERSION=PERCENT", help="Experiment: two or more.")]
Header = Annotated[str, typer.Option(metavar="NAME", help="Experiment: the header that names the caller.")]
GatesFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What is judged: TOML, or a policy in a .rego file.")
]
NoGates = Annotated[bool, typer.Option("--no-gates", help="Judge nothing: steps follow by time alone.")]
Inconclusive = Annotated[str, typer.Option(help="Without telling: hold (default), promote or rollback.")]
EvalFile = Annotated[
    Path | None,
    typer.Option("--eval", metavar="FILE", help="Evaluation set: lines of JSON, put to both versions."),
]
EvalOutput = Annotated[str, typer.Option(metavar="NAME", help="The model's output that is held against the label.")]
EvalMetric = Annotated[
    list[str] | None, typer.Option(metavar="METRIC", help="accuracy (default), f1, exact_match ...; may be repeated.")
]
Replicas = Annotated[
    int, typer.Option(help="Of the new version at the end; as many as now when not given.", min=0, show_default=False)
]
Surge = Annotated[int | None, typer.Option(help="Replicas beyond those wanted; as many as fit when not given.", min=0)]
Unavailable = Annotated[int | None, typer.Option(help="Replicas that may be missing; 0 when there is room.", min=0)]
StepTimeout = Annotated[str, typer.Option(metavar="TIME", help="For loading and acknowledging. Default 10m.")]
Watch = Annotated[str, typer.Option(metavar="TIME", help="Watch it so long afterwards, and take it back if worse.")]
Downgrade = Annotated[bool, typer.Option("--allow-downgrade", help="The version may be lower than what runs.")]


def asked(
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
    evaluate: EvalFile = None,
    eval_output: EvalOutput = "",
    eval_metric: EvalMetric = None,
    replicas: Replicas = 0,
    max_surge: Surge = None,
    max_unavailable: Unavailable = None,
    step_timeout: StepTimeout = "",
    watch: Watch = "",
    allow_downgrade: Downgrade = False,
) -> Asked:
    """What they come to."""
    from tools.cli.rollout_spec import Asked

    name, _, version = model.partition(":")
    return Asked(
        name,
        version,
        strategy,
        steps,
        hold,
        keep,
        percent,
        duration,
        arms=arm or (),
        header=header,
        gates=gates,
        no_gates=no_gates,
        inconclusive=inconclusive,
        evaluate=evaluate,
        output=eval_output,
        metrics=eval_metric or (),
        replicas=replicas,
        max_surge=max_surge,
        max_unavailable=max_unavailable,
        step_timeout=step_timeout,
        watch=watch,
        allow_downgrade=allow_downgrade,
    )


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `asked` in place of its first parameter, which is what they come to."""
    shared, own = _parameters(asked), _parameters(command)[1:]

    def call(**values: Any) -> None:
        command(asked(**{each.name: values.pop(each.name) for each in shared}), **values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {each.name: each.annotation for each in (*shared, *own)}
    call.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]  # what typer reads
    return call


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """With their annotations as types, not as texts."""
    hints = get_type_hints(function, localns={"Asked": object}, include_extras=True)
    return [each.replace(annotation=hints[each.name]) for each in inspect.signature(function).parameters.values()]

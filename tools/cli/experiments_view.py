"""How experiments look on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.experiment.v1 import experiment_pb2
from tools.cli.plain import enum_name

_STATES = {"PROMOTED": "green", "QUARANTINED": "red", "QUARANTINING": "red", "HELD": "yellow", "CANCELLED": "dim"}


def headline(experiment: experiment_pb2.Experiment) -> Text:
    """One line: where it is and why."""
    state = _state(experiment)
    return Text.assemble(
        (f"{experiment.spec.name}: ", "bold"), (state, _STATES.get(state, "bold")), f": {experiment.reason}"
    )


def shown(experiment: experiment_pb2.Experiment) -> RenderableType:
    """What it is, where it is, and how it came there."""
    spec = experiment.spec
    told = Text(
        f"{spec.model}:{spec.candidate} beside {spec.model}:{spec.baseline}, configuration {experiment.hash[:12]}"
    )
    history = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("when", "what", "by", "why"):
        history.add_column(name)
    before = ""
    for event in experiment.events:
        state = enum_name(experiment_pb2.ExperimentState.DESCRIPTOR, event.state)
        why = "the same" if event.reason == before else event.reason
        history.add_row(event.at.ToJsonString()[:19], Text(state, _STATES.get(state, "")), event.by, why)
        before = event.reason
    return Group(headline(experiment), told, history)


def listed(experiments: Iterable[experiment_pb2.Experiment]) -> Table:
    """A line each."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("experiment", "model", "candidate", "baseline", "state", "why"):
        table.add_column(name, no_wrap=name != "why")
    for each in experiments:
        state, spec = _state(each), each.spec
        table.add_row(
            spec.name, spec.model, spec.candidate, spec.baseline, Text(state, _STATES.get(state, "")), each.reason
        )
    return table


def quarantine_table(quarantined: Iterable[experiment_pb2.Quarantine]) -> Table:
    """A line each, with its review when it had one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("hash", "version", "parameters", "experiment", "since", "why", "review"):
        table.add_column(name, no_wrap=name in ("hash", "version", "since"))
    for each in quarantined:
        review = f"{each.review.by}: {each.review.reason}" if each.HasField("review") else Text("stands", "red")
        parameters = ", ".join(f"{key}={each.parameters[key]}" for key in sorted(each.parameters))
        since = each.at.ToJsonString()[:16]
        version = f"{each.model}:{each.version}"
        table.add_row(each.hash[:12], version, parameters, each.experiment, since, each.reason, review)
    return table


def _state(experiment: experiment_pb2.Experiment) -> str:
    return enum_name(experiment_pb2.ExperimentState.DESCRIPTOR, experiment.state)

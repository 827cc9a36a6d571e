"""How a study looks on a terminal and as JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tools.training.view import figure
from tools.tuning.course import PARTS
from tools.tuning.records import best_of

STATES = {"complete": "green", "pruned": "yellow", "fail": "red", "running": "cyan"}
FEWEST_FOR_IMPORTANCE = 8
"""Completed trials below which nothing is said of importance."""


@dataclass(frozen=True)
class Study:
    """A study as it stands."""

    name: str
    metric: str
    direction: str
    prune_by: str
    prune_sign: float
    trials: Sequence[FrozenTrial]
    importance: Mapping[str, float]
    """By hyperparameter, together 1; nothing when there are too few trials."""

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best value."""
        return best_of(list(self.trials), self.direction == "maximize")

    @property
    def completed(self) -> int:
        """How many trials have a value."""
        return sum(trial.state is TrialState.COMPLETE for trial in self.trials)


def study_json(study: Study) -> dict[str, Any]:
    """What --json prints."""
    best = study.best
    return {
        "study": study.name,
        "metric": study.metric,
        "direction": study.direction,
        "best": None if best is None else trial_json(study, best),
        "importance": dict(study.importance) or None,
        "trials": [trial_json(study, trial) for trial in study.trials],
    }


def trial_json(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """One trial as plain values; what was measured on the way by the share of the job."""
    return {
        "number": trial.number,
        "state": state_of(trial),
        "value": value_of(trial),
        "hyperparameters": dict(trial.params),
        "job": trial.user_attrs.get("job", ""),
        "pruned": trial.user_attrs.get("pruned", "") if trial.state is TrialState.PRUNED else "",
        "error": trial.user_attrs.get("error", ""),
        "on_the_way": {
            f"{part / PARTS:.2f}": value * study.prune_sign if math.isfinite(value) else None
            for part, value in sorted(trial.intermediate_values.items())
        },
    }


def shown(study: Study) -> RenderableType:
    """What `aimesh train tune show` prints."""
    names = sorted({name for trial in study.trials for name in trial.params})
    table = Table(box=None, pad_edge=False)
    for title in ("TRIAL", "STATE", study.metric.upper(), *names, "JOB", ""):
        table.add_column(
            title, overflow="fold", justify="right" if title in ("TRIAL", study.metric.upper()) else "left"
        )
    for trial in study.trials:
        best = trial is study.best
        state = state_of(trial)
        table.add_row(
            str(trial.number),
            Text(state, style=STATES.get(state, "")),
            Text(figure(value_of(trial)), style="bold" if best else ""),
            *(label(trial.params.get(name)) for name in names),
            trial.user_attrs.get("job", ""),
            "best" if best else _why(trial),
        )
    return Group(headline(study), Text(), table, Text(), *_importance(study))


def headline(study: Study) -> Text:
    """One line: how many trials there are, and the best."""
    counts = {word: sum(state_of(trial) == word for trial in study.trials) for word in STATES}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no trials yet"
    best = study.best
    line = Text.assemble((f"{study.name}: ", "bold"), said)
    if best is not None:
        line.append(f"; best {study.metric} {figure(value_of(best))} in trial {best.number}")
    return line


def state_of(trial: FrozenTrial) -> str:
    """complete, pruned, fail, running or waiting."""
    return trial.state.name.lower()


def value_of(trial: FrozenTrial) -> float | None:
    """The metric of a completed trial; optuna keeps something else as a pruned one's value."""
    return trial.value if trial.state is TrialState.COMPLETE else None


def label(value: object) -> str:
    """A hyperparameter's value for people."""
    return figure(value) if isinstance(value, float) else "" if value is None else str(value)


def _why(trial: FrozenTrial) -> str:
    if trial.state is TrialState.PRUNED:
        return str(trial.user_attrs.get("pruned", ""))
    return str(trial.user_attrs.get("error", "")).partition("\n")[0]


def _importance(study: Study) -> Iterator[RenderableType]:
    if not study.importance:
        yield Text(
            f"Which hyperparameter matters cannot be said yet: {study.completed} trials were completed, "
            f"and it takes {FEWEST_FOR_IMPORTANCE} at least, with different values.",
            style="dim",
        )
        return
    yield Text("importance", style="dim")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, share in sorted(study.importance.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{share:.0%}", Text("━" * round(share * 40), style="cyan"))
    yield table

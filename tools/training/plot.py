"""A job's curves as a picture. Imports matplotlib: the extra `report`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aimesh.training.v1 import training_pb2
from tools.training.status import recorded
from tools.training.view import value_of

_INK, _PALE = "#1a1a1a", "#767676"
_PANEL_INCHES, _WIDTH_INCHES = 2.3, 8.0
_MOST_PANELS = 8


def plot(job: training_pb2.Job, points: Sequence[training_pb2.MetricPoint], path: Path) -> None:
    """Writes a PNG: a panel each for the loss, the other values that change, and the time of a step.

    A dashed line stands where a new attempt went on. Raises OSError when the file cannot be written.
    """
    names = panels(points)
    figure = Figure(figsize=(_WIDTH_INCHES, 0.8 + _PANEL_INCHES * len(names)), layout="constrained")
    figure.suptitle(f"{job.id}: {recorded(job) or job.spec.name}".replace("$", r"\$"), fontsize=11, color=_INK)
    axes: Any = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for place, name in zip(axes, names, strict=True):
        _panel(place, points, name)
    axes[-1].set_xlabel("step", fontsize=8)
    figure.savefig(path, format="png", dpi=120)


def panels(points: Sequence[training_pb2.MetricPoint]) -> list[str]:
    """What is drawn, from the top: the loss, other values of which two are different, the time of a step."""
    found = sorted({name for point in points for name in point.values})
    changing = [name for name in found if len({point.values[name] for point in points if name in point.values}) > 1]
    return ["loss", *changing[: _MOST_PANELS - 2], "step_s"]


def _panel(axes: Any, points: Sequence[training_pb2.MetricPoint], name: str) -> None:
    drawn = [(point.step, value) for point in points if (value := value_of(point, name)) is not None]
    finite = [value for _, value in drawn if math.isfinite(value)]
    axes.plot([step for step, _ in drawn], [value for _, value in drawn], color="#1f6fb4", linewidth=1)
    for before, after in itertools.pairwise(points):
        if after.attempt != before.attempt:
            axes.axvline(after.step, color=_PALE, linewidth=0.7, linestyle="--")
    if finite and min(finite) > 0 and max(finite) / min(finite) > 50:
        axes.set_yscale("log")
    title = "seconds of a step" if name == "step_s" else name.replace("_", " ")
    axes.set_ylabel(title.replace("$", r"\$"), fontsize=8)
    axes.tick_params(labelsize=7, colors=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

"""A study as a picture: its history, and which hyperparameters matter. Imports matplotlib: the extra `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.tuning.view import Study, state_of, value_of

_INK, _PALE, _BLUE, _RED = "#1a1a1a", "#767676", "#1f6fb4", "#b3261e"


def plot(study: Study, path: Path) -> None:
    """Writes a PNG. Raises OSError when the file cannot be written."""
    rows = len(study.importance)
    heights = [3.2, 0.6 + 0.28 * rows] if rows else [3.2]
    figure = Figure(figsize=(8.0, 0.8 + sum(heights)), layout="constrained")
    figure.suptitle(f"study {study.name}", fontsize=11, color=_INK)
    axes: Any = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _history(axes[0], study)
    if rows:
        _importance(axes[1], study)
    for place in axes:
        place.tick_params(labelsize=7, colors=_INK)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def _history(axes: Any, study: Study) -> None:
    """Each trial's value, the best so far as a line; pruned and failed ones as marks on the floor."""
    done = [(trial.number, value) for trial in study.trials if (value := value_of(trial)) is not None]
    axes.scatter(
        [number for number, _ in done], [value for _, value in done], s=18, color=_BLUE, label="completed", zorder=3
    )
    better = max if study.direction == "maximize" else min
    so_far = [better(value for _, value in done[: index + 1]) for index in range(len(done))]
    axes.plot(
        [number for number, _ in done], so_far, color=_BLUE, linewidth=1, drawstyle="steps-post", label="best so far"
    )
    for state, mark, color in (("pruned", "|", _PALE), ("fail", "x", _RED)):
        numbers = [trial.number for trial in study.trials if state_of(trial) == state]
        if numbers:
            floor = axes.get_xaxis_transform()
            axes.scatter(numbers, [0.03] * len(numbers), s=26, marker=mark, color=color, transform=floor, label=state)
    axes.set_xlabel("trial", fontsize=8)
    axes.set_ylabel(study.metric.replace("$", r"\$"), fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _importance(axes: Any, study: Study) -> None:
    found = sorted(study.importance.items(), key=lambda item: item[1])
    bars = axes.barh(
        [name.replace("$", r"\$") for name, _ in found], [share for _, share in found], color=_BLUE, height=0.6
    )
    axes.bar_label(bars, [f"{share:.0%}" for _, share in found], fontsize=7, padding=3, color=_INK)
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("importance", fontsize=8)

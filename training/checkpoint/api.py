"""What the loop asks of checkpoints; training.checkpoint.writer and .loader do it.

The state is a dict: "model" and "optimizer" from the engine, "scheduler" (a state_dict, empty without one) and
"progress": {"step": optimizer steps made, "world_size": workers that wrote it} and "sanity" (numbers by name). Nothing
that is drawn need be kept: what a step draws is a function of the job's seed, the step and the rank.

A worker that has only some of the model's tensors (a stage of a pipeline) says those of the whole model in "shapes",
sizes by name: its plain tensors are then its own, and a checkpoint is held against the whole model. It is not written.
Without "shapes" plain tensors are the same on every worker, and each is written by one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Saved:
    """A checkpoint of which this worker's part is whole on its disk, or which was given up."""

    step: int
    files: Mapping[str, int] = field(default_factory=dict)
    """Bytes by path below checkpoints/<step>."""
    given_up: str = ""
    """Why there is none: a disk, this worker's or another's, had no room for it. Nothing of it is left here."""


class Saver(Protocol):
    """Writes this worker's part of each checkpoint below a folder, as <step>/."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Takes the state as it is now and writes it while training goes on; waits for the one before first.

        All workers call it at the same step. Raises DataLossError when the one before could not be written for another
        reason than a full disk, InvalidInputError for a state that could not be read again.
        """
        ...

    def finished(self) -> list[Saved]:
        """What has become whole since the last call, or was given up. Never waits; raises what `save` raises."""
        ...

    def wait(self) -> list[Saved]:
        """Waits for what is under way, then the same."""
        ...

"""When a loss is none: NaN, infinite, or so far from where it began that the job only burns power."""

from __future__ import annotations

import math

from meshkit.errors import InvalidInputError
from training.run.reporting import Place

FIRST = 10
"""Steps whose mean loss is where a job began."""
FACTOR = 1e3
"""How many times its beginning a smoothed loss may be, when the trainer states no limit."""
_SMOOTHING = 0.1


class Sanity:
    """Looks at the loss of each step. `state` travels with checkpoints, so that a beginning is not forgotten."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._first = 0.0
        self._count = 0
        self._smoothed: float | None = None

    def check(self, loss: float, norm: float, own: float, place: Place) -> None:
        """Raises InvalidInputError: NOT_FINITE, or DIVERGED. `own` is this worker's part of the loss."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's length is {norm}"
            whose = "this worker's samples" if not math.isfinite(own) else "another worker's samples, or the gradient"
            raise InvalidInputError(
                f"{place}: {what}; it comes from {whose}",
                hint="look at these samples; a lower lr, clip_norm, or a loss without log(0) may help",
                reason="NOT_FINITE",
            )
        self._smoothed = loss if self._smoothed is None else (1 - _SMOOTHING) * self._smoothed + _SMOOTHING * loss
        if self._count < FIRST:
            self._first = (self._first * self._count + abs(loss)) / (self._count + 1)
            self._count += 1
        bound, value = self._bound(loss)
        if value > bound:
            raise InvalidInputError(
                f"{place}: the loss is {loss:.4g}, smoothed {self._smoothed:.4g}, beyond {bound:.4g}: it diverges",
                hint="lower lr, add clip_norm, or set the trainer's limit",
                reason="DIVERGED",
            )

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"first": self._first, "count": float(self._count)}

    def load(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self._first, self._count = float(state["first"]), int(state["count"])

    def _bound(self, loss: float) -> tuple[float, float]:
        """The most that may be, and what is held against it."""
        if self._limit is not None:
            return self._limit, loss
        return (FACTOR * self._first if self._count >= FIRST else math.inf), self._smoothed or 0.0

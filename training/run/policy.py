"""When a checkpoint is written: a pure function of steps and time."""

from __future__ import annotations

from dataclasses import dataclass

from aimesh.training.v1 import training_pb2

DEFAULT_EVERY_S = 60.0


@dataclass
class Policy:
    """Every so many steps, every so many seconds, or both. Rank 0's clock decides for all."""

    every_steps: int
    every_s: float
    last_s: float
    """When the last one was begun, by the clock that `due` is given."""

    def due(self, step: int, now_s: float) -> bool:
        """Whether one is to be written after a step (its number, from 1)."""
        by_steps = self.every_steps > 0 and step % self.every_steps == 0
        by_time = self.every_s > 0 and now_s - self.last_s >= self.every_s
        return by_steps or by_time

    def written(self, now_s: float) -> None:
        """One was begun."""
        self.last_s = now_s


def policy_of(spec: training_pb2.CheckpointPolicy, now_s: float) -> Policy:
    """The policy of a job: every minute when it states none."""
    every_s = spec.every.ToTimedelta().total_seconds()
    return Policy(spec.every_steps, every_s if every_s or spec.every_steps else DEFAULT_EVERY_S, now_s)

"""What is done to a mesh while a job trains, beside what `tests/chaos/acts.py` has."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos import acts

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Trains:
    """Waits for a step of the job that is made after this moment."""

    workers: int | None = None
    """By an attempt of so many."""
    steps: int = 1
    """So many steps that are made after it."""
    within_s: float = PATIENCE_S


@dataclass(frozen=True)
class Phase:
    """Waits until the job is in a phase; empty: until it is over."""

    phase: str
    within_s: float = PATIENCE_S


@dataclass(frozen=True)
class Checkpointed:
    """Waits for a newer checkpoint than the recorded one."""

    within_s: float = PATIENCE_S


@dataclass(frozen=True)
class Flip:
    """Flips a byte in each file that a node holds of the recorded checkpoint."""

    node: str


Act = acts.Act | Trains | Phase | Checkpointed | Flip


def machine(node: str) -> acts.Send:
    """kill -9 of everything that a node runs."""
    return acts.kill(node, f"triton:{node}", f"worker:{node}")

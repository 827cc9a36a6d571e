"""What a person asks for, with who and why: rollouts, experiments and jobs keep it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """Who wants something, why and when."""

    by: str
    reason: str
    now_ns: int
    """Nanoseconds since the epoch."""

    def said(self, verb: str) -> str:
        """paused by alice: lunch."""
        return f"{verb} by {self.by}{f': {self.reason}' if self.reason else ''}"

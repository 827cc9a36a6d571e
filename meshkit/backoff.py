"""Exponential back-off with full jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Delays before the next try. Not shared between tasks.

    first_s and most_s are seconds; `uniform(a, b)` is passed in so that tests need no luck.
    """

    first_s: float = 0.1
    most_s: float = 5.0
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = field(default=0, init=False)

    def next_delay(self) -> float:
        """Counts a failure and gives the seconds to wait: uniform in 0 .. min(most, first * 2**failures)."""
        ceiling = min(self.most_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return self.uniform(0.0, ceiling)

    def reset(self) -> None:
        """Forgets the failures; call it after a success."""
        self.failures = 0

"""Which workers are slower than the others, over several looks: a single one may fall on a moment's hiccup."""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SLOW = 1.5
"""A worker that takes so many times as long as the median of the others, look after look, is a straggler."""
CLEAR = 2.0
"""And one that takes so many times as long is one where nobody has looked often enough yet."""
LOOKS = 3
APART_S = 0.5
"""Looks that follow each other sooner see the same heartbeat: the newest counts."""
STALE_S = 15.0
"""Looks that are older say nothing of now."""
MOST_KEPT = 256
"""Attempts that are remembered, those that were looked at last."""


def ratios(times: Sequence[float]) -> list[float]:
    """How many times the median of the others each worker takes; 0 where one of the two is not known.

    `times` are in any one unit, 0 for unknown.
    """
    found = []
    for index, own in enumerate(times):
        others = [each for place, each in enumerate(times) if place != index and each > 0]
        median = statistics.median(others) if others else 0.0
        found.append(own / median if own > 0 and median else 0.0)
    return found


@dataclass
class _Looks:
    at: float
    ranks: list[deque[float]]


@dataclass
class Slowness:
    """Remembers the last looks at each attempt."""

    clock: Callable[[], float] = time.monotonic
    _attempts: OrderedDict[tuple[str, int], _Looks] = field(default_factory=OrderedDict, init=False)

    def stragglers(self, job: str, attempt: int, times: Sequence[float]) -> list[float]:
        """Takes a look in; by rank, how many times the median a straggler takes at the least of its looks, else 0."""
        now, key = self.clock(), (job, attempt)
        looks = self._attempts.get(key)
        if looks is None or now - looks.at > STALE_S or len(looks.ranks) != len(times):
            looks = _Looks(now - APART_S, [deque(maxlen=LOOKS) for _ in times])
        again = now - looks.at < APART_S
        for rank, ratio in zip(looks.ranks, ratios(times), strict=True):
            if again:
                rank.pop()
            rank.append(ratio)
        looks.at = looks.at if again else now
        self._attempts[key] = looks
        self._attempts.move_to_end(key)
        while len(self._attempts) > MOST_KEPT:
            self._attempts.popitem(last=False)
        return [_verdict(rank) for rank in looks.ranks]


def _verdict(looks: Sequence[float]) -> float:
    """Slow at every look: so one good step clears nobody's name for long, and one bad one blackens none."""
    least = min(looks)
    return least if least > (SLOW if len(looks) >= LOOKS else CLEAR) else 0.0

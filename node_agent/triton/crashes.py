"""When deaths in a row are a crash loop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class CrashCounter:
    """`limit` deaths within a sliding window of `window_s` seconds are a crash loop, until one run lasts that long."""

    limit: int
    window_s: float
    looping: bool = field(default=False, init=False)
    _deaths: deque[float] = field(default_factory=deque, init=False)

    def add(self, now: float, ready_s: float) -> int:
        """Counts a death at `now` (seconds, monotonic) after `ready_s` seconds of good work.

        Gives how many deaths lie in the window, this one included.
        """
        if ready_s >= self.window_s:
            self._deaths.clear()
            self.looping = False
        self._deaths.append(now)
        while self._deaths[0] <= now - self.window_s:
            self._deaths.popleft()
        self.looping = self.looping or len(self._deaths) >= self.limit
        return len(self._deaths)

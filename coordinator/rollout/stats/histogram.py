"""Latency histograms: quantiles and counts above a bucket. Bucket i holds times from 2^(i/8) to 2^((i+1)/8) µs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from coordinator.rollout.stats.sequential import Counts, above
from coordinator.rollout.window import BUCKETS_AN_OCTAVE


@dataclass(frozen=True)
class Histogram:
    """Sorted once, asked often."""

    buckets: tuple[int, ...]
    """Rising."""
    counts: tuple[int, ...]
    """One a bucket."""
    cumulative: tuple[int, ...]
    """Of this bucket and those below."""

    @classmethod
    def of(cls, latency: Mapping[int, int]) -> Histogram:
        """From a window's buckets."""
        buckets = tuple(sorted(bucket for bucket, count in latency.items() if count > 0))
        counts = tuple(latency[bucket] for bucket in buckets)
        return cls(buckets, counts, tuple(accumulate(counts)))

    @property
    def total(self) -> int:
        """How many requests."""
        return self.cumulative[-1] if self.cumulative else 0

    def above(self, bucket: int) -> Counts:
        """How many are in buckets higher than this one, and how many there are."""
        place = bisect_left(self.buckets, bucket + 1)
        below = self.cumulative[place - 1] if place else 0
        return Counts(self.total - below, self.total)

    def bucket(self, quantile: float) -> int:
        """The one that the quantile, 0 to 1, lies in: at most 1 - quantile of the requests are above it."""
        place = bisect_left(self.cumulative, math.ceil(quantile * self.total))
        return self.buckets[place]

    def quantile_ms(self, quantile: float) -> float:
        """In milliseconds, as far into its bucket (on the logarithmic scale) as the requests in it are."""
        place = bisect_left(self.cumulative, math.ceil(quantile * self.total))
        before = self.cumulative[place] - self.counts[place]
        inside = (quantile * self.total - before) / self.counts[place]
        return float(2 ** ((self.buckets[place] + min(1.0, max(0.0, inside))) / BUCKETS_AN_OCTAVE) / 1000)

    def surely_reached(self, quantile: float, alpha: float) -> int | None:
        """The highest bucket that the quantile surely lies above, but for a chance of alpha over all looks.

        S. Howard, A. Ramdas, "Sequential estimation of quantiles", Bernoulli 2022: one test of the share above serves
        all buckets, for the highest bucket that is wrong says no more than the true quantile's own share does.
        """
        enough = -math.log(alpha)
        low, high = 0, bisect_left(self.buckets, self.bucket(quantile)) + 1
        while low < high:  # the evidence rises with the share above, so it falls from bucket to bucket
            middle = (low + high) // 2
            sure = above(self.above(self.buckets[middle] - 1), 1 - quantile) >= enough
            low, high = (middle + 1, high) if sure else (low, middle)
        return self.buckets[low - 1] - 1 if low else None

"""Whole numbers in proportion to speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from meshkit.errors import InvalidInputError


def split(total: int, speeds: Sequence[float]) -> list[int]:
    """Shares of `total`, one a worker in order, in proportion to the speeds; their sum is exactly `total`.

    A speed of 0 is unknown and counts as the mean of the known ones; when all are, the shares are even. The same
    arguments give the same shares on every machine: the arithmetic is whole numbers only. Each share is its exact
    proportion rounded down or up: largest remainder (Hamilton's method), of equal remainders the first worker's.
    Raises InvalidInputError for no workers, a negative total, and speeds that are negative or not finite.
    """
    if not speeds:
        raise InvalidInputError(f"{total} cannot be split over no workers")
    if total < 0:
        raise InvalidInputError(f"{total} cannot be split: it is negative")
    weights = _weights(speeds)
    whole = sum(weights)
    shares, remainders = zip(*(divmod(total * weight, whole) for weight in weights), strict=True)
    left = total - sum(shares)
    first = sorted(range(len(weights)), key=lambda worker: (-remainders[worker], worker))[:left]
    return [share + (worker in first) for worker, share in enumerate(shares)]


def _weights(speeds: Sequence[float]) -> list[int]:
    """The speeds as whole numbers in exact proportion: a float is a whole number over a power of two."""
    for worker, speed in enumerate(speeds):
        if not (math.isfinite(speed) and speed >= 0):
            raise InvalidInputError(f"speed {speed!r} of worker {worker} is not a number from 0 up")
    known = [speed for speed in speeds if speed]
    if not known:
        return [1] * len(speeds)
    ratios = [float(speed).as_integer_ratio() for speed in speeds]
    scale = max(below for _, below in ratios)
    whole = [above * (scale // below) for above, below in ratios]
    # The mean of the known ones for the unknown, with everything times their number so that it stays whole.
    return [weight * len(known) or sum(whole) for weight in whole]

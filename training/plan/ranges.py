"""Ranges of samples: each sample belongs to exactly one worker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from meshkit.errors import InvalidInputError
from training.plan.shares import split


def ranges(total: int, speeds: Sequence[float]) -> list[tuple[int, int]]:
    """Half-open ranges of 0 to `total`, one a worker in order, as long as `split` says. Raises InvalidInputError."""
    return list(pairwise(accumulate(split(total, speeds), initial=0)))


def pieces(span: tuple[int, int], sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Which samples of which files a range is: (file, first, last) with half-open positions within each file.

    `sizes` are the files' samples, in order; empty files give no piece. Raises InvalidInputError for a range that is
    not within them.
    """
    first, last = span
    if not 0 <= first <= last <= sum(sizes):
        raise InvalidInputError(f"samples {first} to {last} are not within the {sum(sizes)} of {len(sizes)} files")
    found = []
    for file, (start, end) in enumerate(pairwise(accumulate(sizes, initial=0))):
        low, high = max(first, start), min(last, end)
        if low < high:
            found.append((file, low - start, high - start))
    return found

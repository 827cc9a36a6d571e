"""Tests that may be looked at as often as one likes: P(ever p <= alpha) <= alpha when the hypothesis is true.

Each is an e-process: a number that is, at every stopping time, expected to be at most 1 under the hypothesis, so that
it ever reaches 1/alpha with a chance of at most alpha (Ville 1939; Ramdas, Grünwald, Vovk, Shafer, "Game-theoretic
statistics and safe anytime-valid inference", Statistical Science 2023). All are functions of cumulative counts: who
comes later needs no history of earlier looks. They are given as natural logarithms; `p_value` turns them around.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

NEVER = -math.inf
"""The logarithm of an e-value of 0: nothing speaks against the hypothesis."""
JEFFREYS = (0.5, 0.5)
UNIFORM = (1.0, 1.0)
_KNOWN = 10_000.0
"""Weight, in requests, of a share that is known beforehand."""
_LN2 = math.log(2)


@dataclass(frozen=True)
class Counts:
    """How many of some requests had something bad about them: failed, or took longer than some time."""

    bad: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1; 0 of no requests."""
        return self.bad / self.total if self.total else 0.0


def p_value(log_e: float) -> float:
    """The always-valid p-value of an e-process: min(1, 1/e)."""
    return 1.0 if log_e <= 0 else math.exp(-log_e)


def mean(log_es: Sequence[float]) -> float:
    """The logarithm of the e-values' mean, an e-process too, however they depend on each other (Vovk, Wang 2021)."""
    top = max(log_es)
    if top == NEVER:
        return NEVER
    return top + math.log(sum(math.exp(each - top) for each in log_es) / len(log_es))


def side_by_side(now: Counts, before: Counts, share: float | None = None) -> float:
    """Against: a bad request is no likelier to be the new version's than a good one is. Both versions served at once.

    Each request goes to the new version by chance, with the same share throughout. Then, whatever makes requests bad
    and however that changes over time, the bad ones are the new version's with that same share, and the good ones too:
    two streams of coin tosses with one unknown bias, as in M. Lindon, A. Malek, "Anytime-valid inference for
    multinomial count data" (NeurIPS 2022), where the bias is known. It is not here (weights are approximate), so the
    mixture over both streams' biases is divided by the largest likelihood under the hypothesis (L. Wasserman,
    A. Ramdas, S. Balakrishnan, "Universal inference", PNAS 2020, section 8). A `share` that was asked for, 0 to 1,
    makes it quicker and, when requests do not follow it, not invalid.
    """
    # Turned round: of the bad requests and of the good ones, those that are the new version's.
    bad = Counts(now.bad, now.bad + before.bad)
    good = Counts(now.total - now.bad, now.total - now.bad + before.total - before.bad)
    if not _more(bad, good):
        return NEVER
    spread = _beta(good, JEFFREYS)
    if share is not None and 0 < share < 1:
        known = _beta(good, (_KNOWN * share, _KNOWN * (1 - share)))
        spread = mean([spread, known])
    return _against_one_share(bad, good, _beta(bad, UNIFORM) + spread)


def one_after_the_other(now: Counts, before: Counts) -> float:
    """Against: the new version's requests are no likelier to be bad. The old one's were counted at another time.

    Valid when each version's requests are bad by chance, independently and with a share that does not change: what the
    time of day does to both is held against the new version. Wasserman et al. 2020 as above.
    """
    if not _more(now, before):
        return NEVER
    return _against_one_share(now, before, _beta(now, JEFFREYS) + _beta(before, JEFFREYS))


def above(counts: Counts, share: float) -> float:
    """Against: requests are bad with at most this share, 0 to 1. A beta mixture (H. Robbins 1970)."""
    if counts.total == 0 or counts.share <= share:
        return NEVER
    return _beta(counts, JEFFREYS) - _log_likelihood(counts, share)


def below(counts: Counts, share: float) -> float:
    """Against: requests are bad with at least this share, 0 to 1. A beta mixture whose mean is a fifth of it."""
    if counts.total == 0 or counts.share >= share:
        return NEVER
    return _beta(counts, (0.5, 0.5 * (5 / share - 1))) - _log_likelihood(counts, share)


def surely_above(counts: Counts, alpha: float) -> float:
    """A share that requests are bad with at least, but for a chance of alpha over all looks: 0 to 1."""
    if counts.bad == 0:
        return 0.0
    enough = -math.log(alpha)
    low, high = 0.0, counts.share
    for _ in range(24):  # to 6e-8
        middle = (low + high) / 2
        low, high = (middle, high) if above(counts, middle) >= enough else (low, middle)
    return low


def _more(one: Counts, other: Counts) -> bool:
    """Whether one's share is larger; not when one of them counts nothing."""
    return one.bad * other.total > other.bad * one.total


def _against_one_share(one: Counts, other: Counts, log_mixture: float) -> float:
    """The mixture over the largest likelihood with one's share at most the other's: one common share, as it is more."""
    both = Counts(one.bad + other.bad, one.total + other.total)
    return log_mixture - _log_likelihood(both, both.share)


def _log_likelihood(counts: Counts, share: float) -> float:
    """Of one order of the requests; a share of 0 or 1 only where there is nothing that it excludes."""
    good = counts.total - counts.bad
    if (counts.bad and share <= 0) or (good and share >= 1):
        return NEVER
    return (counts.bad * math.log(share) if counts.bad else 0.0) + (good * math.log1p(-share) if good else 0.0)


def _beta(counts: Counts, prior: tuple[float, float]) -> float:
    """The likelihood of one order of the requests, averaged over a beta distribution of the share."""
    a, b = prior
    return _log_beta(a + counts.bad, b + counts.total - counts.bad) - _log_beta_prior(a, b)


@lru_cache(maxsize=64)
def _log_beta_prior(a: float, b: float) -> float:
    return _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

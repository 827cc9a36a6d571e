"""Whether requests were split as they should have been: an experiment whose arms got other shares compares nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.rollout.stats.sequential import p_value

MISMATCH = 0.001
"""Below this p-value the split is not what was asked for; so low because it is tested for every experiment."""
_KNOWN = 100.0
"""Weight, in requests, of the shares that were asked for in the mixture of those that may be."""


@dataclass(frozen=True)
class Split:
    """What the test of a split says."""

    statistic: float
    p_value: float

    @property
    def mismatch(self) -> bool:
        """Whether the arms' comparison is not to be trusted."""
        return self.p_value < MISMATCH


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> Split:
    """Pearson's chi-squared of the arms' requests beside their shares, which may have any sum.

    A. Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019. One look only.
    Raises ValueError when the lengths differ or a share is not positive.
    """
    if len(counts) != len(shares) or any(share <= 0 for share in shares):
        raise ValueError("each count needs a positive share")
    total = sum(counts)
    if total == 0 or len(counts) < 2:
        return Split(0.0, 1.0)
    from scipy import special

    expected = [total * share / sum(shares) for share in shares]
    statistic = sum((count - should) ** 2 / should for count, should in zip(counts, expected, strict=True))
    return Split(statistic, float(special.chdtrc(len(counts) - 1, statistic)))


def split_at_any_look(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The same as an always-valid p-value, for a split that is looked at while it grows.

    Requests averaged over a Dirichlet distribution of the shares, beside the shares that were asked for: M. Lindon,
    A. Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022. Raises ValueError as above.
    """
    if len(counts) != len(shares) or any(share <= 0 for share in shares):
        raise ValueError("each count needs a positive share")
    asked = [share / sum(shares) for share in shares]
    mixture = math.lgamma(_KNOWN) - math.lgamma(_KNOWN + sum(counts))
    for count, share in zip(counts, asked, strict=True):
        mixture += math.lgamma(_KNOWN * share + count) - math.lgamma(_KNOWN * share)
    return p_value(mixture - sum(count * math.log(share) for count, share in zip(counts, asked, strict=True)))

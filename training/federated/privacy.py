"""What Gaussian noise on clipped updates is worth: epsilon of the subsampled Gaussian mechanism, by Rényi divergence.

A round adds up updates that are clipped to length C, of clients that are each drawn with probability q, and adds
Gaussian noise of standard deviation z * C. What one client can change in what comes out of all rounds is bounded by
(epsilon, delta). Sources: I. Mironov, "Rényi Differential Privacy", 2017 (propositions 1 and 3); I. Mironov,
K. Talwar, L. Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019 (section 3.3, whole orders);
H. B. McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018 (the mean over an expected
number of clients).
"""

from __future__ import annotations

import math

ORDERS = (*range(2, 65), 72, 80, 96, 128, 192, 256, 512, 1024)
"""Rényi orders that are tried."""


def epsilon(probability: float, noise: float, rounds: int, delta: float) -> float:
    """Epsilon after so many rounds at a delta; infinite without noise, 0 before the first round.

    `noise` is the noise's standard deviation over the clipping length, `probability` each client's to take part.
    """
    if rounds == 0 or probability == 0:
        return 0.0
    if noise == 0:
        return math.inf
    bounds = [rounds * renyi(order, probability, noise) - math.log(delta) / (order - 1) for order in ORDERS]
    return float(min(bounds))


def renyi(order: int, probability: float, noise: float) -> float:
    """The Rényi divergence of one round, of a whole order from 2."""
    if probability >= 1:
        return order / (2 * noise * noise)
    terms = (
        _log_binomial(order, k)
        + (order - k) * math.log1p(-probability)
        + k * math.log(probability)
        + (k * k - k) / (2 * noise * noise)
        for k in range(order + 1)
    )
    return max(_log_sum(list(terms)), 0.0) / (order - 1)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_sum(logs: list[float]) -> float:
    """log of the sum of exponentials, without overflow."""
    most = max(logs)
    return most + math.log(math.fsum(math.exp(one - most) for one in logs))

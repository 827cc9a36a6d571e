"""What Gaussian noise on clipped updates is worth: epsilon of the subsampled Gaussian mechanism, by Rényi divergence.

A round adds up updates that are clipped to length C, of clients that are each drawn with probability q, and adds
Gaussian noise of standard deviation z * C. What one client can change in what comes out of all rounds is bounded by
(epsilon, delta), where neighbours differ by one client that is there or not.

Sources: the divergence: I. Mironov, K. Talwar, L. Zhang, "Rényi Differential Privacy of the Sampled Gaussian
Mechanism", 2019 (section 3.3, whole orders). Rounds add up: I. Mironov, "Rényi Differential Privacy", 2017
(proposition 1). From there to epsilon: C. Canonne, G. Kamath, T. Steinke, "The Discrete Gaussian for Differential
Privacy", 2020 (proposition 12), which Opacus and TensorFlow Privacy use too, and which is never more than Mironov's
proposition 3. The mean over an expected number of clients: H. B. McMahan et al., "Learning Differentially Private
Recurrent Language Models", 2018.

Checked against what Google's dp_accounting, TensorFlow Privacy and Opacus publish (test_privacy.py names each source).
They try fractional orders too, which is less where the best order is small: by 5 % in one case there.
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
    return min(bound(order, rounds * renyi(order, probability, noise), delta) for order in ORDERS)


def bound(order: int, divergence: float, delta: float) -> float:
    """Epsilon at a delta of what has this Rényi divergence of this order."""
    return max(0.0, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


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

"""The accountant: against published values, and what any accountant must hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.federated.privacy import ORDERS, epsilon, renyi


@pytest.mark.parametrize(
    ("probability", "noise", "rounds", "expected"),
    [
        # M. Abadi et al., "Deep Learning with Differential Privacy", 2016, section 3.2.
        (0.01, 4.0, 10_000, 1.26),
        # TensorFlow Privacy's MNIST tutorial, 2019: 60,000 samples in batches of 256.
        (256 / 60_000, 1.3, 15 * 60_000 // 256, 1.19),
        (256 / 60_000, 1.1, 60 * 60_000 // 256, 3.01),
        (256 / 60_000, 0.7, 45 * 60_000 // 256, 7.10),
    ],
)
def test_published_values(probability: float, noise: float, rounds: int, expected: float) -> None:
    assert epsilon(probability, noise, rounds, 1e-5) == pytest.approx(expected, rel=0.005)


def test_of_all_clients_it_is_the_plain_gaussian() -> None:
    assert renyi(8, 1.0, 2.0) == 8 / (2 * 4)
    assert renyi(8, 1 - 1e-12, 2.0) == pytest.approx(1.0, rel=1e-6)
    # The best order in closed form (Mironov 2017, proposition 3 with corollary 3).
    rounds, noise, delta = 10, 5.0, 1e-5
    rho = rounds / (2 * noise**2)
    assert epsilon(1.0, noise, rounds, delta) == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1 / delta)), rel=0.01)


@given(st.sampled_from(ORDERS[:20]), st.floats(0.001, 1.0), st.floats(0.5, 10.0))
def test_drawing_fewer_clients_and_more_noise_tell_less(order: int, probability: float, noise: float) -> None:
    assert renyi(order, probability / 2, noise) <= renyi(order, probability, noise) + 1e-12
    assert renyi(order, probability, noise * 1.5) <= renyi(order, probability, noise) + 1e-12


def test_the_ends() -> None:
    assert epsilon(0.5, 1.0, 0, 1e-5) == 0
    assert epsilon(0.5, 0.0, 1, 1e-5) == math.inf
    assert epsilon(0.0, 1.0, 5, 1e-5) == 0
    assert math.isfinite(epsilon(0.9, 0.1, 100_000, 1e-9))

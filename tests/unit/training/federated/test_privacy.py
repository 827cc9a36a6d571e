"""The accountant: against published values, and what any accountant must hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.federated.privacy import ORDERS, bound, epsilon, renyi

_SLOW = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
MNIST = 256 / 60_000
"""Each sample's chance to be in a batch of 256 of MNIST's 60,000."""


def steps(epochs: int) -> int:
    return epochs * 60_000 // 256


@pytest.mark.parametrize(
    ("probability", "noise", "rounds", "delta", "expected", "within"),
    [
        # tensorflow/privacy, tensorflow_privacy/privacy/analysis/compute_dp_sgd_privacy_test.py (2cd46dbb):
        # test_compute_dp_sgd_privacy Test0 and Test1, whose best orders are whole (19 and 13).
        (150 / 60_000, 1.3, 15 * 400, 1e-5, 0.7242234026109595, 1e-9),
        (100 / 100_000, 1.0, 30 * 1000, 1e-7, 1.4154988495444842, 1e-9),
        # The same, no_microbatching_with_subsampling_rdp: its best order is a fraction, near 4.
        (0.01, 0.7, 120, 1e-5, 3.2392676, 0.05),
        # pytorch/opacus, opacus/tests/accountants_test.py (030b723f): test_rdp_accountant.
        (0.04, 1.5, 2250, 1e-5, 7.32911117143, 2e-4),
        # google/differential-privacy, rdp_privacy_accountant_test.py (0b109e95): test_compute_epsilon_delta_gaussian.
        (1.0, 4.530877117, 1, 1e-6, 1.0, 1e-3),
    ],
)
def test_what_libraries_publish(
    probability: float, noise: float, rounds: int, delta: float, expected: float, within: float
) -> None:
    found = epsilon(probability, noise, rounds, delta)
    assert found == pytest.approx(expected, rel=within)
    assert found > expected * (1 - 1e-6), "fewer orders never promise more"


def test_the_divergence_is_the_one_that_is_published() -> None:
    """google/differential-privacy, rdp_privacy_accountant_test.py (0b109e95): …compute_rdp_poisson_sampled_gaussian."""
    found = [50 * renyi(order, 0.01, 2.5) for order in (5, 50, 100)]
    assert found == pytest.approx([2.18075656e-03, 2.38460375e-02, 1.67416308e02], rel=1e-4)


def test_by_hand() -> None:
    """google/differential-privacy, rdp_privacy_accountant_test.py (0b109e95): test_compute_epsilon_delta_pure_dp."""
    assert min(bound(order, 1.1, 1e-5) for order in range(2, 33)) == pytest.approx(1.32783806176, rel=1e-10)


@pytest.mark.parametrize(
    ("noise", "epochs", "expected"),
    [
        # tensorflow/privacy, tutorials/README.md (047e1eef): MNIST in batches of 256, delta 1e-5.
        (1.12, 60, 2.92),
        (0.6, 30, 9.74),
        (1.2, 10, 1.20),
        # pytorch/opacus, examples/mnist_README.md (0698adf7): its headings, for the same batches.
        (1.3, 15, 1.19),
        (1.1, 60, 3.01),
        (0.7, 45, 7.10),
    ],
)
def test_the_classic_figures_are_those_of_the_older_bound(noise: float, epochs: int, expected: float) -> None:
    """They were published before Canonne et al. 2020, with epsilon by Mironov 2017, proposition 3."""
    rounds = steps(epochs)
    classic = min(rounds * renyi(order, MNIST, noise) - math.log(1e-5) / (order - 1) for order in ORDERS)
    assert classic == pytest.approx(expected, rel=0.005)
    assert 0.7 * classic < epsilon(MNIST, noise, rounds, 1e-5) < classic


def test_of_all_clients_it_is_the_plain_gaussian() -> None:
    assert renyi(8, 1.0, 2.0) == 8 / (2 * 4)
    assert renyi(8, 1 - 1e-12, 2.0) == pytest.approx(1.0, rel=1e-6)


@_SLOW
@given(st.integers(1, 50), st.floats(1.0, 10.0), st.floats(1e-9, 1e-3))
def test_no_smaller_than_the_gaussian_allows_and_no_larger_than_its_classic_bound(
    rounds: int, noise: float, delta: float
) -> None:
    """The exact delta of rounds that add up to one Gaussian: B. Balle, Y.-X. Wang 2018, theorem 8."""
    found, shift = epsilon(1.0, noise, rounds, delta), math.sqrt(rounds) / noise

    def above(x: float) -> float:
        return math.erfc(x / math.sqrt(2)) / 2

    exact = above(found / shift - shift / 2) - math.exp(found) * above(found / shift + shift / 2)
    assert exact <= delta * (1 + 1e-9)
    orders = [rounds * order / (2 * noise**2) - math.log(delta) / (order - 1) for order in ORDERS]
    assert found <= min(orders)


@_SLOW
@given(st.sampled_from(ORDERS[:20]), st.floats(0.001, 1.0), st.floats(0.5, 10.0))
def test_drawing_fewer_clients_and_more_noise_tell_less(order: int, probability: float, noise: float) -> None:
    assert renyi(order, probability / 2, noise) <= renyi(order, probability, noise) + 1e-12
    assert renyi(order, probability, noise * 1.5) <= renyi(order, probability, noise) + 1e-12


def test_the_ends() -> None:
    assert epsilon(0.5, 1.0, 0, 1e-5) == 0
    assert epsilon(0.5, 0.0, 1, 1e-5) == math.inf
    assert epsilon(0.0, 1.0, 5, 1e-5) == 0
    assert epsilon(0.01, 100.0, 1, 0.9) == 0, "delta alone covers it"
    assert math.isfinite(epsilon(0.9, 0.1, 100_000, 1e-9))

"""Tests of one look, effects and corrections: beside scipy's, by hand, and by what must always hold."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coordinator.rollout.stats import bootstrap, corrections, effects, fixed, ratio, trend
from coordinator.rollout.stats.sequential import Counts

NUMBERS = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=30)
COUNTS = st.dictionaries(st.integers(0, 20), st.integers(1, 30), min_size=1, max_size=10)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def spread(latency: dict[int, int]) -> list[float]:
    return [float(bucket) for bucket, count in latency.items() for _ in range(count)]


@given(NUMBERS, NUMBERS, st.sampled_from([0.0, 1.5]))
def test_welch_is_scipys(first: list[float], second: list[float], margin: float) -> None:
    if min(np.var(first), np.var(second)) == 0:
        return
    ours = fixed.welch(first, second, margin)
    theirs = stats.ttest_ind(np.array(first) - margin, second, equal_var=False, alternative="greater")
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)


def test_welch_without_spread() -> None:
    assert fixed.welch([2, 2], [1, 1]).p_value == 0
    assert fixed.welch([1, 1], [1, 1]).p_value == 1
    with pytest.raises(ValueError, match="two of each"):
        fixed.welch([1], [1, 2])


@given(NUMBERS, NUMBERS)
def test_mann_whitney_is_scipys(first: list[float], second: list[float]) -> None:
    if len(set(first + second)) == 1:
        assert fixed.mann_whitney(first, second).p_value == 1
        return
    theirs = stats.mannwhitneyu(first, second, alternative="greater", method="asymptotic")
    ours = fixed.mann_whitney(first, second)
    assert ours.statistic == theirs.statistic
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-6)


@given(COUNTS, COUNTS)
def test_histograms_say_what_their_values_say(first: dict[int, int], second: dict[int, int]) -> None:
    one, two = spread(first), spread(second)
    ours, theirs = fixed.mann_whitney_histogram(first, second), fixed.mann_whitney(one, two)
    assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.p_value))
    assert effects.cliffs_delta_histogram(first, second) == pytest.approx(effects.cliffs_delta(one, two))


def test_two_proportions_by_hand() -> None:
    found = fixed.two_proportions(Counts(30, 200), Counts(15, 200))
    assert found.statistic == pytest.approx(2.3735, abs=1e-3)  # 0.075 / sqrt(0.1125 * 0.8875 * 0.01)
    assert found.p_value == pytest.approx(stats.norm.sf(found.statistic))


@given(st.integers(0, 9), st.integers(0, 9), st.integers(10, 40), st.integers(10, 40))
def test_few_failures_are_fishers(x: int, y: int, n: int, m: int) -> None:
    theirs = stats.fisher_exact([[x, n - x], [y, m - y]], alternative="greater").pvalue
    assert fixed.fisher(Counts(x, n), Counts(y, m)) == pytest.approx(theirs, rel=1e-6)


def test_nothing_measured_says_nothing() -> None:
    assert fixed.two_proportions(Counts(0, 0), Counts(1, 5)).p_value == 1
    assert fixed.two_proportions(Counts(0, 10), Counts(0, 10)).p_value == 1
    assert fixed.sign_flip([0.0, 0.0]).p_value == 1
    assert trend.mann_kendall([1.0]) == 1
    assert trend.theil_sen([(0, 5)]) == 0


@pytest.mark.parametrize(("better", "worse"), [(1, 7), (3, 9), (2, 20), (30, 60)])
def test_signs_at_random_are_a_binomial_test(better: int, worse: int) -> None:
    exact = stats.binomtest(worse, better + worse, alternative="greater").pvalue
    ours = fixed.sign_flip([1.0] * worse + [-1.0] * better + [0.0] * 50).p_value
    assert ours == pytest.approx(exact)


def test_signs_at_random_of_different_sizes_are_scipys() -> None:
    values = np.array([0.3, -0.1, 0.5, 0.2, -0.25, 0.4, 0.6, 0.05])
    theirs = stats.permutation_test(
        (values, np.zeros(8)), _paired_sum, permutation_type="samples", alternative="greater"
    )
    assert fixed.sign_flip(values.tolist()).p_value == pytest.approx(theirs.pvalue)
    many = np.tile(values, 3)  # 24: drawn
    normal = stats.norm.sf(many.sum() / math.sqrt((many**2).sum()))
    assert fixed.sign_flip(many.tolist()).p_value == pytest.approx(normal, abs=2e-3)
    assert fixed.sign_flip(many.tolist()) == fixed.sign_flip(many.tolist())


def _paired_sum(first: bootstrap.Floats, second: bootstrap.Floats) -> float:
    return float((first - second).sum())


@pytest.mark.parametrize("test", ["welch", "mann_whitney", "sign_flip"])
def test_p_values_are_uniform_when_nothing_differs(test: str) -> None:
    generator = np.random.default_rng(5)
    found = []
    for _ in range(400):
        first, second = generator.lognormal(size=(2, 60))
        if test == "sign_flip":
            p = fixed.sign_flip(first[:11] - second[:11]).p_value  # all 2,048 signs; p >= 0.5 is not told apart
            p = p if p < 1 else generator.uniform(0.5, 1)
        else:
            p = getattr(fixed, test)(first, second).p_value
        found.append(p)
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_cohens_d_by_hand() -> None:
    assert effects.cohens_d([2, 4, 6], [1, 3, 5]) == pytest.approx(0.5)
    assert effects.cohens_d([1, 1], [0, 0]) == math.inf
    assert effects.cohens_d([1, 1], [1, 1]) == 0


@given(NUMBERS, NUMBERS)
def test_effects_turn_round(first: list[float], second: list[float]) -> None:
    for effect in (effects.cohens_d, effects.cliffs_delta):
        assert effect(first, second) == pytest.approx(-effect(second, first))
    assert -1 <= effects.cliffs_delta(first, second) <= 1


def test_cliffs_delta_by_hand() -> None:
    assert effects.cliffs_delta([1, 2, 3], [1, 2]) == pytest.approx((0 - 1 + 1 + 0 + 2) / 6)
    assert effects.cliffs_delta([5, 6], [1, 2]) == 1


def test_corrections_by_hand() -> None:
    assert corrections.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrections.benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])


@given(P_VALUES)
def test_corrections_hold_what_they_must(p_values: list[float]) -> None:
    strict, loose = corrections.holm(p_values), corrections.benjamini_hochberg(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for raised in (strict, loose):
        assert all(raised[a] <= raised[b] for a, b in pairwise(order))
        assert all(each >= p and each <= 1 for each, p in zip(raised, p_values, strict=True))
    assert all(low <= high + 1e-12 for low, high in zip(loose, strict, strict=True))
    assert loose == pytest.approx(list(stats.false_discovery_control(p_values)))


def test_a_split_that_is_not_the_one_asked_for() -> None:
    assert ratio.sample_ratio([5000, 5000], [50, 50]).p_value == 1
    odd = ratio.sample_ratio([5200, 4800], [50, 50])
    assert odd.statistic == pytest.approx(16)
    assert odd.p_value == pytest.approx(stats.chi2.sf(16, 1))
    assert odd.mismatch
    assert not ratio.sample_ratio([948, 52], [95, 5]).mismatch
    with pytest.raises(ValueError, match="positive share"):
        ratio.sample_ratio([1, 2], [1, 0])


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5))
def test_the_split_is_scipys(counts: list[int]) -> None:
    shares = [float(place + 1) for place in range(len(counts))]
    expected = np.array(shares) * sum(counts) / sum(shares)
    assert ratio.sample_ratio(counts, shares).p_value == pytest.approx(stats.chisquare(counts, expected).pvalue)


def test_intervals_hold_what_they_are_of() -> None:
    generator = np.random.default_rng(3)
    inside = 0
    for number in range(200):
        low, high = bootstrap.interval(generator.exponential(size=80).tolist(), seed=number, draws=400)
        inside += low <= 1 <= high
    assert 0.88 <= inside / 200 <= 0.98
    values = list(generator.normal(size=200))
    low, high = bootstrap.interval(values, bootstrap.quantile_of(0.5))
    assert low < np.median(values) < high
    low, high = bootstrap.difference([each + 3 for each in values], values)
    assert low < 3 < high
    assert (low, high) == bootstrap.difference([each + 3 for each in values], values)
    with pytest.raises(ValueError, match="nothing"):
        bootstrap.interval([])


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40).map(float), min_size=4, max_size=30))
def test_trends_are_scipys(values: list[float]) -> None:
    points = list(enumerate(values))
    assert trend.theil_sen(points) == pytest.approx(stats.theilslopes(values)[0])
    if len(set(values)) == len(values) > 10:
        theirs = stats.kendalltau(range(len(values)), values, alternative="greater").pvalue
        assert trend.mann_kendall(values) == pytest.approx(theirs, abs=0.02)


def test_short_trends_are_exact() -> None:
    for values in permutations([1.0, 2.0, 3.0, 4.0, 5.0]):
        theirs = stats.kendalltau(range(5), values, alternative="greater", method="exact").pvalue
        assert trend.mann_kendall(values) == pytest.approx(theirs)
    assert trend.mann_kendall([3.0] * 20) == 1


def test_a_leak_shows_and_noise_does_not() -> None:
    generator = np.random.default_rng(11)
    leak = 1000 + 2 * np.arange(30) + generator.normal(size=30)
    assert trend.rising(leak.tolist()) < 1e-3
    alarms = sum(trend.rising(generator.normal(size=200).tolist()) <= 0.05 for _ in range(300))
    assert alarms / 300 <= 0.05

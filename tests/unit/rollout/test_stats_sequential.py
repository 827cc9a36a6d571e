"""Sequential tests: the expected e-value never passes 1, looking on does not raise false alarms, and truth shows."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rollout.stats import betting, sequential
from coordinator.rollout.stats.histogram import Histogram
from coordinator.rollout.stats.sequential import Counts

SHARES = (0.05, 0.3, 0.5, 0.9)


def expected(outcomes: list[tuple[float, float]]) -> float:
    """Of (probability, log e)."""
    return math.fsum(p * math.exp(log_e) for p, log_e in outcomes)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("told", [None, 0.1, 0.5])
@pytest.mark.parametrize("bad", [[0, 1, 0, 0, 0, 0, 1, 0], [1, 1, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1, 0, 1]])
def test_side_by_side_whatever_is_bad_when_and_whatever_share_is_told(
    share: float, told: float | None, bad: list[int]
) -> None:
    outcomes = []
    for to_new in product((0, 1), repeat=len(bad)):
        new = Counts(sum(b for b, n in zip(bad, to_new, strict=True) if n), sum(to_new))
        old = Counts(sum(bad) - new.bad, len(bad) - new.total)
        chance = share**new.total * (1 - share) ** old.total
        outcomes.append((chance, sequential.side_by_side(new, old, told)))
    assert expected(outcomes) <= 1


def binomial(count: int, share: float) -> list[float]:
    return [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("n", "m"), [(4, 30), (25, 25), (60, 5)])
def test_one_after_the_other_for_any_share(share: float, n: int, m: int) -> None:
    outcomes = [
        (p * q, sequential.one_after_the_other(Counts(x, n), Counts(y, m)))
        for x, p in enumerate(binomial(n, share))
        for y, q in enumerate(binomial(m, share))
    ]
    assert expected(outcomes) <= 1


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("count", [1, 20, 200])
def test_one_share_beside_a_bound(share: float, count: int) -> None:
    chances = binomial(count, share)
    for test in (sequential.above, sequential.below):
        assert expected([(p, test(Counts(x, count), share)) for x, p in enumerate(chances)]) <= 1 + 1e-9


@pytest.mark.parametrize("rise", [0.1, 0.5])
def test_bets_on_a_mean(rise: float) -> None:
    outcomes = []
    for values in product((-1.0, 0.0, 1.0), repeat=6):
        chance = math.prod({-1.0: rise, 0.0: 1 - 2 * rise, 1.0: rise}[each] for each in values)
        outcomes.append((chance, betting.mean_above(values, 0.0, -1, 1)))
        assert betting.mean_above(values, 0.0, -1, 1) == betting.mean_below([-each for each in values], 0.0, -1, 1)
    assert expected(outcomes) <= 1 + 1e-9
    with pytest.raises(ValueError, match="must lie in"):
        betting.mean_above([2.0], 0.0, -1, 1)
    assert sequential.p_value(betting.mean_above([1.0, 0.0, 1.0] * 20, 0.0, -1, 1)) < 1e-6


def ever_worse(share: float, rates: tuple[float, float], rounds: int, *, told: float | None) -> float:
    """The share of rounds in which p was ever below 0.05 over 120 looks, with errors that come and go for both."""
    generator = np.random.default_rng(17)
    alarms = 0
    for _ in range(rounds):
        weather = 1 + 9 * (generator.random(120) < 0.2)
        new = generator.binomial(50, share, 120)
        old = 50 - new
        x, y = generator.binomial(new, rates[1] * weather), generator.binomial(old, rates[0] * weather)
        sums = np.cumsum([x, new, y, old], axis=1).T.tolist()
        alarms += any(
            sequential.p_value(sequential.side_by_side(Counts(a, b), Counts(c, d), told)) <= 0.05 for a, b, c, d in sums
        )
    return alarms / rounds


@pytest.mark.parametrize("told", [None, 0.1])
def test_looking_at_every_request_does_not_raise_false_alarms(told: float | None) -> None:
    assert ever_worse(0.1, (0.01, 0.01), 300, told=told) <= 0.05


def test_what_is_worse_shows() -> None:
    assert ever_worse(0.1, (0.005, 0.05), 50, told=None) == 1


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 500), st.integers(1, 500))
def test_no_counts_break_it(x: int, n: int, y: int, m: int) -> None:
    now, before = Counts(min(x, n), n), Counts(min(y, m), m)
    for log_e in (sequential.side_by_side(now, before), sequential.one_after_the_other(now, before)):
        assert 0 <= sequential.p_value(log_e) <= 1
        if now.share <= before.share:
            assert sequential.p_value(log_e) == 1
    low = sequential.surely_above(now, 0.01)
    assert 0 <= low <= now.share


def test_a_share_that_is_told_is_quicker_and_a_wrong_one_is_only_slower() -> None:
    now, before = Counts(6, 100), Counts(1, 900)
    plain, told, wrong = (sequential.side_by_side(now, before, share) for share in (None, 0.1, 0.6))
    assert told > plain + 1
    assert wrong == pytest.approx(plain - math.log(2))


def test_quantiles_of_a_histogram() -> None:
    found = Histogram.of({8: 50, 16: 45, 24: 4, 40: 1, 50: 0})
    assert (found.total, found.bucket(0.5), found.bucket(0.95), found.bucket(0.99)) == (100, 8, 16, 24)
    assert found.quantile_ms(0.5) == pytest.approx(2 ** (9 / 8) / 1000)
    assert found.above(16) == Counts(5, 100)
    assert found.above(100) == Counts(0, 100)


def test_a_quantile_surely_reached_is_below_it_and_comes_near() -> None:
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(200):
        buckets, counts = np.unique(generator.normal(100, 6, 3000).astype(int), return_counts=True)
        reached = Histogram.of(dict(zip(buckets.tolist(), counts.tolist(), strict=True))).surely_reached(0.95, 0.01)
        assert reached is not None
        wrong += reached >= 109  # the quantile is 109.87, in bucket 109
        assert reached >= 106
    assert wrong <= 2
    assert Histogram.of({5: 1}).surely_reached(0.95, 0.01) is None  # one request says nothing

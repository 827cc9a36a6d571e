"""Who takes part is a pure function of seed and round."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.federated.sampling import chosen, chosen_each, client_seed, order, size


@given(st.integers(0, 2**63), st.integers(1, 10**6), st.integers(1, 60), st.floats(0.01, 1), st.integers(1, 60))
def test_a_round_draws_the_same_clients_each_once(
    seed: int, number: int, clients: int, fraction: float, least: int
) -> None:
    drawn = chosen(seed, number, clients, fraction, least)
    assert drawn == chosen(seed, number, clients, fraction, least)
    assert len(set(drawn)) == len(drawn) == size(clients, fraction, least)
    assert min(least, clients) <= len(drawn) <= clients
    later = chosen(seed, number, clients, fraction, least, turn=1)
    assert list(later[: len(drawn)]) == list(drawn), "those who answered stay chosen when more are drawn in"
    assert sorted(chosen(seed, number, clients, fraction, least, turn=clients)) == list(range(clients))


def test_all_clients_come_about_as_often() -> None:
    counts = Counter(client for number in range(1, 2001) for client in chosen(7, number, 10, 0.3, 1))
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 1.2 * min(counts.values())
    secret = np.random.default_rng(7)
    each = [len(chosen_each(secret, 50, 0.2)) for _ in range(1000)]
    assert 9.5 < sum(each) / len(each) < 10.5
    assert len(set(each)) > 5, "each client is drawn by itself, so their number varies"


def test_a_share_that_is_whole_in_decimal_is_not_rounded_up() -> None:
    assert size(10, 0.1, 1) == 1
    assert size(10, 0.3, 1) == 3
    assert size(10, 0.31, 1) == 4
    assert size(3, 0.01, 2) == 2


def test_clients_and_rounds_draw_apart() -> None:
    seeds = {client_seed(1, number, client) for number in range(50) for client in range(50)}
    assert len(seeds) == 2500
    assert order(1, 1, 20) != order(1, 2, 20) != order(2, 2, 20)

"""Which clients take part in a round: without privacy's noise a pure function of seed and round, so a restarted
aggregator picks the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_ORDER, _CLIENT = 11, 13
"""Streams of random numbers that are drawn apart."""


def order(seed: int, round_number: int, clients: int) -> list[int]:
    """All clients in the order in which this round would draw them, uniform over all orders."""
    return [int(client) for client in _generator(seed, _ORDER, round_number).permutation(clients)]


def size(clients: int, fraction: float, least: int) -> int:
    """How many take part: the fraction rounded up, at least `least`, at most all."""
    # 0.1 * 10 is a little more than 1 in binary: what is that near to a whole number is it.
    return min(clients, max(1, least, math.ceil(clients * fraction - 1e-9)))


def chosen(seed: int, round_number: int, clients: int, fraction: float, least: int, turn: int = 0) -> Sequence[int]:
    """The clients of a round. Each `turn` after the first adds as many again: the next of the same order."""
    return order(seed, round_number, clients)[: size(clients, fraction, least) * (turn + 1)]


def chosen_each(secret: np.random.Generator, clients: int, probability: float) -> Sequence[int]:
    """Each client with this probability, by itself (Poisson sampling): what the privacy accountant's bound is of.

    The bound holds for those who do not know who took part, and whoever reads jobs knows their seed: so it is not drawn
    with that. A restarted aggregator draws anew.
    """
    return [int(client) for client in np.flatnonzero(secret.random(clients) < probability)]


def client_seed(seed: int, round_number: int, client: int) -> int:
    """Seed of everything that a client draws in a round: 64 bits."""
    sequence = np.random.SeedSequence([seed, _CLIENT, round_number, client])
    return int(sequence.generate_state(1, np.uint64)[0])


def _generator(seed: int, stream: int, round_number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, round_number])))

"""Rounds: who counts, what is refused by name, when it is enough, and what comes out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimesh.training.v1 import federated_pb2, training_pb2
from meshkit.errors import InvalidInputError, SupersededError
from tests.unit.training.federated.support import MODEL, desk, send, update
from training.federated.rounds import Desk
from training.federated.state import fresh
from training.federated.wire import CONTROL, parts_of

TRIMMED = training_pb2.AGGREGATION_TRIMMED_MEAN
SCAFFOLD = training_pb2.AGGREGATION_SCAFFOLD
_FIXTURE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_FIXTURE
@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 1000)), min_size=1, max_size=8), st.floats(0.1, 2))
def test_the_model_moves_by_the_mean_weighted_by_samples(
    tmp_path: Path, sent: list[tuple[float, int]], rate: float
) -> None:
    made = desk(tmp_path, clients=len(sent), most_norm=1e9, server_learning_rate=rate)
    for client, (value, samples) in enumerate(sent):
        send(made, client, update(value), samples=samples)
    assert made.ready(0)
    closed = made.close()
    expected = rate * np.average([value for value, _ in sent], weights=[samples for _, samples in sent])
    np.testing.assert_allclose(closed.state.model["a"], np.full((3, 2), expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(closed.state.model["b"], np.full(4, expected), rtol=1e-9, atol=1e-6)
    assert closed.state.counted == dict.fromkeys(range(len(sent)), 1)
    assert not list(tmp_path.iterdir()), "no update's file is left"


@_FIXTURE
@given(st.permutations(range(6)))
def test_the_order_in_which_updates_come_does_not_matter(tmp_path: Path, order: list[int]) -> None:
    made = desk(tmp_path, clients=6)
    generator = np.random.default_rng(0)
    drawn = {name: np.asarray(generator.normal(size=array.shape), array.dtype) for name, array in MODEL.items()}
    updates = [drawn] * 6
    for client in order:
        send(made, client, updates[client], samples=client + 1)
    closed = made.close()
    np.testing.assert_allclose(closed.state.model["a"], updates[0]["a"], rtol=1e-6)


def next_round(made: Desk) -> None:
    made.advance(made.close(), 0)


def test_a_late_update_is_of_a_round_that_is_over_and_the_same_twice_counts_once(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=3, deadline_s=10)
    send(made, 0, update(1.0))
    header = federated_pb2.UpdateHeader(job="j", client=0, round=1, samples=10, loss=1.0)
    assert made.begin(header) is None, "its answer was lost on the way, and it sent again"
    made.take(1, 10, 1)
    late = made.begin(federated_pb2.UpdateHeader(job="j", client=1, round=1, samples=10, loss=1.0))
    assert late is not None
    assert not made.ready(9.9)
    assert made.ready(10)
    next_round(made)
    with pytest.raises(SupersededError, match="round 1 is over"):
        made.begin(federated_pb2.UpdateHeader(job="j", client=1, round=1, samples=10, loss=1.0))
    for part in parts_of(update(1.0)):
        late.take(part)
    with pytest.raises(SupersededError, match="round 1 is over"):
        made.add(late.finish())
    assert not made.taken


def test_a_client_that_took_the_round_from_an_aggregator_before_takes_it_again(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=2)
    with pytest.raises(SupersededError, match="aggregator before"):
        made.begin(federated_pb2.UpdateHeader(job="j", client=1, round=1, samples=10, loss=1.0))
    assert made.take(1, 10, 0) is not None
    assert made.take(1, 10, 0) is not None, "asked again, it is given again"


def test_when_too_few_answer_in_time_more_are_drawn_in(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=10, fraction=0.2, min_clients=2, deadline_s=5)
    there = [client for client in range(10) if made.take(client, 10, 0)]
    assert len(there) == 2
    send(made, there[0], update(1.0))
    assert not made.ready(5)
    more = [client for client in range(10) if made.take(client, 10, 5)]
    assert len(more) == 3
    assert there[1] in more
    send(made, next(client for client in more if client != there[1]), update(1.0))
    assert not made.ready(9.9), "the others have until the new deadline"
    assert made.ready(10)
    assert made.close().clients == 2


def test_one_that_let_the_deadline_pass_is_not_waited_for_until_it_comes_again(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=3, deadline_s=5)
    for client in range(3):
        made.take(client, 10, 0)
    for client in range(2):
        send(made, client, update(1.0))
    assert not made.ready(4.9)
    assert made.ready(5), "its node may be gone"
    made.advance(made.close(), 5)
    for client in range(2):
        send(made, client, update(1.0), now_s=5)
    assert made.ready(5.1)
    made.advance(made.close(), 6)
    for client in range(2):
        send(made, client, update(1.0), now_s=6)
    assert made.take(2, 10, 6) is not None, "it is back"
    assert not made.ready(6.1)
    send(made, 2, update(1.0), now_s=6)
    assert made.ready(6.1)
    assert made.close().clients == 3


def test_one_that_says_that_it_cannot_answer_is_waited_for_neither_now_nor_later(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=2, deadline_s=5)
    made.take(1, 10, 0)
    said = federated_pb2.UpdateHeader(job="j", client=1, round=1, error="its model is another")
    with pytest.raises(InvalidInputError, match="its model is another"):
        made.begin(said)
    send(made, 0, update(1.0))
    assert made.ready(0.1)
    closed = made.close()
    assert closed.refused == {1: "client 1: its model is another"}
    made.advance(closed, 1)
    send(made, 0, update(1.0), now_s=1)
    assert made.ready(1.1)
    made.take(1, 10, 2)
    assert not made.ready(2.1), "it has come again"


def test_before_anyone_is_there_no_deadline_runs(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=2, deadline_s=5)
    assert not made.ready(1e9)
    assert made.take(0, 10, 1e9) is not None
    assert not made.ready(1e9 + 1)


def test_when_all_are_refused_the_job_says_whose_and_why(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=2, min_clients=2)
    send(made, 0, update(1.0))
    made.refuse(federated_pb2.UpdateHeader(round=1, client=1), "its loss is nan")
    with pytest.raises(InvalidInputError, match="client 1: its loss is nan") as raised:
        made.ready(0)
    assert raised.value.reason == "UPDATES_REFUSED"


@_FIXTURE
@given(st.integers(3, 9), st.floats(0.0, 0.49), st.integers(0, 100))
def test_the_trimmed_mean_is_within_what_honest_clients_sent(
    tmp_path: Path, clients: int, trim: float, seed: int
) -> None:
    made = desk(tmp_path, clients=clients, aggregation=TRIMMED, trim=trim, most_norm=1e12)
    generator = np.random.default_rng(seed)
    honest = generator.normal(size=(clients, 3, 2)).astype(np.float32)
    bad = min(math.floor(clients * trim), (clients - 1) // 2)
    sent = honest.copy()
    sent[:bad] = 1e5
    for client in range(clients):
        send(made, client, {"a": sent[client], "b": np.zeros(4)})
    assert made.ready(0)
    model = made.close().state.model["a"]
    assert (model >= honest.min(axis=0) - 1e-5).all()
    kept = honest[bad:].max(axis=0)
    assert (model <= kept + 1e-5).all()
    if not bad:
        off = 0
        ordered = np.sort(honest, axis=0)[off : clients - off]
        np.testing.assert_allclose(model, ordered.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_scaffolds_variate_moves_by_the_share_that_took_part(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=4, fraction=0.5, aggregation=SCAFFOLD)
    there = [client for client in range(4) if made.take(client, 10, 0)]
    changes = {CONTROL + name: np.full_like(array, 2.0) for name, array in MODEL.items()}
    for client in there:
        send(made, client, {**update(1.0), **changes})
    closed = made.close()
    np.testing.assert_allclose(closed.state.control["a"], np.full((3, 2), 0.5 * 2.0))
    assert {**closed.state.counted} == dict.fromkeys(there, 1)


@settings(_FIXTURE, max_examples=10)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6), st.lists(st.integers(-9, 9), min_size=24, max_size=24))
def test_scaffolds_variate_is_the_mean_of_all_clients_own_whoever_took_part(
    tmp_path: Path, samples: list[int], drawn: list[int]
) -> None:
    made = desk(tmp_path, {"b": MODEL["b"]}, clients=len(samples), fraction=0.4, aggregation=SCAFFOLD, most_norm=1e9)
    own, values = dict.fromkeys(range(len(samples)), 0.0), map(float, drawn)
    while set(made.state.counted) != set(own) or made.number < 4:
        for client, count in enumerate(samples):
            if made.take(client, count, 0):
                new = next(values, float(client))
                change = {CONTROL + "b": np.full(4, new - own[client])}
                send(made, client, {"b": np.ones(4), **change}, samples=count)
                own[client] = new
        assert made.ready(0)
        next_round(made)
    expected = np.average(list(own.values()), weights=samples)
    np.testing.assert_allclose(made.state.control["b"], np.full(4, expected), rtol=1e-9, atol=1e-9)


def test_a_control_variate_that_is_too_long_is_refused(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=3, min_clients=2, aggregation=SCAFFOLD)
    for client, value in enumerate((1.0, 1e9, 1.0)):
        changes = {CONTROL + name: np.full_like(array, value) for name, array in MODEL.items()}
        send(made, client, {**update(1.0), **changes})
    assert made.ready(0)
    assert "control variate's change" in made.close().refused[1]


def test_clipped_and_noisy(tmp_path: Path) -> None:
    big = {"a": np.zeros((3, 2), np.float32), "b": np.array([3.0, 4.0, 0.0, 0.0])}
    made = desk(tmp_path, clients=2, clip=1.0)
    send(made, 0, big)
    send(made, 1, update(0.0))
    closed = made.close()
    np.testing.assert_allclose(closed.state.model["b"], [0.3, 0.4, 0, 0], rtol=1e-6)
    assert closed.epsilon == math.inf
    wide = {"w": np.zeros(40_000, np.float32)}
    noisy = desk(tmp_path, model=wide, clients=10, clip=2.0, noise=1.5)
    for client in range(10):
        send(noisy, client, update(0.0, wide), samples=client + 1)
    closed = noisy.close()
    assert float(closed.state.model["w"].std()) == pytest.approx(1.5 * 2.0 / 10, rel=0.02)
    assert closed.state.releases == 1
    assert 0 < closed.epsilon < 10


def test_nobody_who_knows_the_jobs_seed_knows_which_private_clients_took_part(tmp_path: Path) -> None:
    drawn = set()
    for secret in range(20):
        settings = desk(tmp_path, clients=10, fraction=0.5, clip=1.0, noise=1.0).settings
        made = Desk(settings, fresh(MODEL, list(MODEL), settings), list(MODEL), tmp_path, np.random.default_rng(secret))
        drawn.add(tuple(client for client in range(10) if made.take(client, 10, 0)))
    assert len(drawn) > 15


def test_of_private_clients_none_weighs_more_and_the_divisor_is_what_was_expected(tmp_path: Path) -> None:
    sums = []
    for seed in range(100):
        made = desk(tmp_path, clients=10, fraction=0.5, clip=100.0, noise=1e-9, seed=seed)
        for client in range(10):
            if made.take(client, 10, 0):
                send(made, client, update(1.0), samples=10**6 if client == 0 else 1)
        assert made.ready(0)
        sums.append(float(made.close().state.model["b"][0]))
    assert len(set(np.round(sums, 6))) > 3
    assert np.mean(sums) == pytest.approx(1.0, abs=0.1)

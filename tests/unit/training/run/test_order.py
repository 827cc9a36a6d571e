"""The order of samples: each exactly once an epoch, whoever takes them, from wherever one goes on."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from training.data.order import Order, holdout, part, total_steps

seeds = st.integers(0, 2**64 - 1)
counts = st.integers(1, 300)
batches = st.integers(1, 64)
speeds = st.lists(st.floats(0, 1e6), min_size=1, max_size=7)


@given(seeds, counts, batches, st.integers(0, 5))
def test_an_epoch_covers_each_sample_once(seed: int, count: int, batch: int, epoch: int) -> None:
    order = Order(seed, count, batch)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    taken = [order.batch(step) for step in steps]
    assert sorted(np.concatenate(taken)) == list(range(count))
    assert all(len(one) == min(batch, count) for one in taken[:-1])
    assert 1 <= len(taken[-1]) <= batch


@given(seeds, counts, batches, speeds, st.integers(0, 20))
def test_parts_are_the_batch_in_order_of_rank(
    seed: int, count: int, batch: int, worker_speeds: list[float], step: int
) -> None:
    whole = Order(seed, count, batch).batch(step)
    parts = [part(whole, rank, worker_speeds) for rank in range(len(worker_speeds))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(seeds, counts, batches, st.integers(0, 50))
def test_a_step_is_a_function_of_its_number_alone(seed: int, count: int, batch: int, step: int) -> None:
    order = Order(seed, count, batch)
    first = order.batch(step).copy()
    order.batch(step + 3 * order.steps_per_epoch)
    np.testing.assert_array_equal(Order(seed, count, batch).batch(step), first)


def test_epochs_differ_and_seeds_differ() -> None:
    order = Order(1, 100, 100)
    assert list(order.batch(0)) != list(order.batch(1))
    assert list(order.batch(0)) != list(Order(2, 100, 100).batch(0))


def test_the_order_is_the_same_in_every_version() -> None:
    """A job that goes on after an upgrade must not see a sample twice: these figures may never change."""
    assert list(Order(7, 10, 10).batch(3)) == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


@given(seeds, counts, st.floats(0, 0.5))
def test_what_is_held_out_is_not_learned(seed: int, count: int, share: float) -> None:
    learn, kept = holdout(seed, count, share)
    assert sorted([*learn, *kept]) == list(range(count))
    assert len(learn) >= 1
    assert abs(len(kept) - share * count) <= 1


def test_steps_of_a_job() -> None:
    assert total_steps(training_pb2.JobSpec(steps=5, epochs=9), 100) == 5
    assert total_steps(training_pb2.JobSpec(epochs=2, batch_size=30), 100) == 8
    assert total_steps(training_pb2.JobSpec(), 33) == 2

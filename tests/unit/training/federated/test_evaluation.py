"""The last model, measured by clients on their own samples: weighted, the worst one named, nobody waited for long."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError, SupersededError
from tests.unit.training.federated.support import MODEL
from training.federated.evaluation import Evaluation
from training.federated.settings import Settings


def evaluation(clients: int, away: tuple[int, ...] = ()) -> Evaluation:
    return Evaluation(Settings(job="j", clients=clients, deadline_s=10), 4, MODEL, 100.0, away)


_FIGURES = st.tuples(st.integers(1, 1000), st.floats(0, 10), st.floats(0, 1))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_FIGURES, min_size=1, max_size=8))
def test_means_are_weighted_and_the_worst_is_the_one_with_the_highest_loss(
    said: list[tuple[int, float, float]],
) -> None:
    made = evaluation(len(said))
    for client, (samples, loss, accuracy) in enumerate(said):
        assert not made.ready(109.9)
        round_ = made.take(client, 101)
        assert round_ is not None
        assert (round_.number, round_.evaluation, round_.deadline.ToSeconds()) == (4, True, 9)
        made.answer(client, samples, {"loss": loss, "accuracy": accuracy})
        assert made.take(client, 101) is None, "once is enough"
    assert made.ready(101)
    results = made.close().results()
    weights = [samples for samples, _, _ in said]
    assert results["loss"] == pytest.approx(np.average([loss for _, loss, _ in said], weights=weights))
    assert results["accuracy"] == pytest.approx(np.average([accuracy for *_, accuracy in said], weights=weights))
    _, loss, accuracy = said[int(results["worst_client"])]
    assert loss == max(loss for _, loss, _ in said)
    assert (results["worst_loss"], results["worst_accuracy"]) == (loss, accuracy)
    assert (results["clients_evaluated"], results["clients_left_out"]) == (len(said), 0)


def test_who_does_not_count_is_named_with_the_reason() -> None:
    made = evaluation(5, away=(4,))
    made.answer(0, 10, {"loss": 1.0})
    made.answer(0, 10, {"loss": 99.0})
    with pytest.raises(InvalidInputError, match="client 1: its loss of the last model is nan") as raised:
        made.answer(1, 10, {"loss": math.nan})
    assert raised.value.reason == "BAD_UPDATE"
    made.answer(2, 0, {})
    assert not made.ready(109.9), "client 3 is there and has not answered"
    assert made.ready(110)
    found = made.close()
    assert found.left_out == {
        1: "its loss of the last model is nan",
        2: "it holds no samples out",
        3: "it did not answer within 10 s",
        4: "it has not come since it failed or let a round's deadline pass",
    }
    assert found.results() == {
        "loss": 1.0,
        "worst_loss": 1.0,
        "worst_client": 0.0,
        "clients_evaluated": 1.0,
        "clients_left_out": 4.0,
    }
    assert made.take(3, 111) is None
    with pytest.raises(SupersededError, match="the evaluation is over"):
        made.answer(3, 10, {"loss": 1.0})


def test_one_that_was_away_and_comes_is_waited_for() -> None:
    made = evaluation(2, away=(1,))
    made.answer(0, 10, {"loss": 1.0})
    assert made.ready(100)
    assert made.take(1, 100) is not None
    assert not made.ready(109)
    made.answer(1, 30, {"loss": 2.0})
    assert made.ready(101)
    assert made.close().values == {"loss": 1.75}


def test_nobody_measured_anything() -> None:
    made = evaluation(1)
    made.answer(0, 0, {})
    assert made.close().results() == {"clients_evaluated": 0.0, "clients_left_out": 1.0}


@pytest.mark.parametrize(
    ("samples", "values", "names"),
    [
        (10, {"accuracy": 1.0}, "it measured accuracy on 10 samples, and no loss"),
        (10, {}, "it measured nothing on 10 samples"),
        (1 << 50, {"loss": 1.0}, "holds"),
        (10, {"loss": 1.0, "accuracy": math.inf}, "its accuracy of the last model is inf"),
        (10, {"loss": 1.0} | {str(place): 1.0 for place in range(20)}, "21 values"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_not_waited_for(samples: int, values: dict[str, Any], names: str) -> None:
    made = evaluation(1)
    with pytest.raises(InvalidInputError, match=names):
        made.answer(0, samples, values)
    assert made.ready(100)


def test_a_client_that_there_is_not() -> None:
    with pytest.raises(InvalidInputError, match="client 7"):
        evaluation(2).take(7, 100)

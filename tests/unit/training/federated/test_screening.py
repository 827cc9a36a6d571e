"""Updates and settings that cannot be: each is refused by name, and the round goes on."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimesh.training.v1 import federated_pb2, training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.training.federated.support import desk, send, update
from training.federated.settings import Settings, checked

TRIMMED = training_pb2.AGGREGATION_TRIMMED_MEAN
SCAFFOLD = training_pb2.AGGREGATION_SCAFFOLD


def nan(sent: dict[str, Any]) -> None:
    sent["a"][1, 1] = math.nan


def infinite(sent: dict[str, Any]) -> None:
    sent["b"][3] = -math.inf


def huge(sent: dict[str, Any]) -> None:
    sent["a"] += 1e6


def shape(sent: dict[str, Any]) -> None:
    sent["a"] = sent["a"].T


def kind(sent: dict[str, Any]) -> None:
    sent["a"] = sent["a"].astype(np.float64)


def keys(sent: dict[str, Any]) -> None:
    sent["c"] = sent.pop("b")


def more(sent: dict[str, Any]) -> None:
    sent["c"] = sent["b"]


def fewer(sent: dict[str, Any]) -> None:
    del sent["b"]


@pytest.mark.parametrize(
    ("poison", "names"),
    [
        (nan, r"a FP32 \[3, 2\]: element 3 is nan"),
        (infinite, r"b FP64 \[4\]: element 3 is -inf"),
        (huge, "long, beyond"),
        (shape, r"a FP32 \[3, 2\] came with shape \[2, 3\]"),
        (kind, r"a FP32 \[3, 2\] came as FP64"),
        (keys, "tensor 'c' came where 'b' belongs"),
        (more, "tensor 'c' is one too many"),
        (fewer, r"b FP64 \[4\] is missing"),
    ],
)
@pytest.mark.parametrize("aggregation", [training_pb2.AGGREGATION_FEDAVG, TRIMMED])
def test_a_poisoned_update_is_refused_by_name_and_the_round_goes_on(
    tmp_path: Path, poison: Any, names: str, aggregation: Any
) -> None:
    made = desk(tmp_path, clients=3, min_clients=2, aggregation=aggregation)
    for number in (1, 2):  # a first round, which has no earlier median, and one that has
        bad = update(1.0)
        poison(bad)
        send(made, 0, update(1.0))
        try:
            send(made, 1, bad)
        except InvalidInputError as error:
            assert error.reason == "BAD_UPDATE"  # noqa: PT017  # in some rounds it is only found at the end
            made.refuse(federated_pb2.UpdateHeader(round=number, client=1), error.message)
        send(made, 2, update(1.0))
        assert made.ready(0)
        closed = made.close()
        assert list(closed.refused) == [1]
        assert re.search(names, closed.refused[1])
        assert closed.refused[1].startswith("client 1: ")
        assert closed.clients == 2
        np.testing.assert_allclose(closed.state.model["a"], np.full((3, 2), float(number)))
        made.advance(closed, 0)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ({"job": "other"}, "'other'"),
        ({"client": 9}, "client 9"),
        ({"round": 2}, "round 2 came in round 1"),
        ({"samples": 999}, "999 samples, and it took the round with 10"),
        ({"loss": math.nan}, "loss is nan"),
        ({"values": {"x" * 101: 1.0}}, "101 characters"),
        ({"values": {str(place): 1.0 for place in range(21)}}, "21 values"),
    ],
)
def test_a_header_that_is_wrong_is_refused_by_name(tmp_path: Path, header: dict[str, Any], names: str) -> None:
    made = desk(tmp_path, clients=3)
    made.take(0, 10, 0)
    said = {"job": "j", "client": 0, "round": 1, "samples": 10, "loss": 1.0, **header}
    with pytest.raises(InvalidInputError, match=names) as raised:
        made.begin(federated_pb2.UpdateHeader(**said))
    assert raised.value.reason == "BAD_UPDATE"


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"min_clients": 5}, "min_clients 5 is more than the 2"),
        ({"trim": 0.5}, "trim"),
        ({"noise": 1.0}, "clip"),
        ({"noise": 1.0, "clip": 1.0, "aggregation": SCAFFOLD}, "AGGREGATION_SCAFFOLD"),
        ({"clip": math.nan}, "clip"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidInputError, match=names):
        checked(Settings(clients=2, **wrong))

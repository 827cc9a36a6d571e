"""Every sample belongs to exactly one client, however uneven the split is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.federated.partition import partition

LABELS = np.repeat(np.arange(10), 30)


@settings(max_examples=60)
@given(
    st.sampled_from(["", "iid", "dirichlet", "labels"]),
    st.integers(1, 30),
    st.lists(st.integers(0, 5), min_size=90, max_size=200),
    st.sampled_from([0.001, 0.1, 1.0, 100.0]),
    st.integers(0, 5),
)
def test_every_sample_goes_to_exactly_one_client_and_none_has_nothing(
    kind: str, clients: int, labels: list[int], alpha: float, seed: int
) -> None:
    said = training_pb2.Partition(kind=kind, alpha=alpha, labels_per_client=3)
    parts = partition(said, np.array(labels), len(labels), clients, seed)
    assert len(parts) == clients
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    again = partition(said, np.array(labels), len(labels), clients, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


def test_label_shards_have_few_labels_and_small_alpha_is_uneven() -> None:
    shards = partition(training_pb2.Partition(kind="labels", labels_per_client=2), LABELS, 300, 10, 0)
    assert max(len(np.unique(LABELS[part])) for part in shards) <= 4  # a shard may lie across two labels

    def labels_each(alpha: float) -> float:
        parts = partition(training_pb2.Partition(kind="dirichlet", alpha=alpha), LABELS, 300, 10, 0)
        return float(np.mean([len(np.unique(LABELS[part])) for part in parts]))

    assert labels_each(0.05) < labels_each(1.0) < labels_each(100.0)


@pytest.mark.parametrize(
    ("said", "labels", "clients", "names"),
    [
        (training_pb2.Partition(kind="wild"), LABELS, 3, "'wild'"),
        (training_pb2.Partition(kind="labels"), None, 3, "needs labels"),
        (training_pb2.Partition(kind="iid"), None, 301, "300 samples"),
        (training_pb2.Partition(kind="labels", labels_per_client=200), LABELS, 3, "600 shards"),
    ],
)
def test_what_cannot_be_split_is_named(
    said: training_pb2.Partition, labels: np.ndarray[Any, Any] | None, clients: int, names: str
) -> None:
    with pytest.raises(InvalidInputError, match=names) as raised:
        partition(said, labels, 300, clients, 0)
    assert raised.value.reason == "BAD_DATA"

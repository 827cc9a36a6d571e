"""Classes and what follows from them alone."""

from __future__ import annotations

import pytest

from training.analyse import classes
from training.analyse.classes import GIB, default_needs


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (0, "small"),
        (999_999, "small"),
        (10**6, "medium"),
        (10**8 - 1, "medium"),
        (10**8, "large"),
        (10**9 - 1, "large"),
        (10**9, "xlarge"),
    ],
)
def test_size_classes(parameters: int, size: str) -> None:
    assert classes.size_class(parameters) == size


def test_the_other_classes() -> None:
    assert [classes.data_class(count) for count in (9_999, 10_000, 99_999, 100_000)] == [
        "small",
        "medium",
        "medium",
        "large",
    ]
    assert [classes.nodes_class(count) for count in (1, 2, 3, 5, 6, 10, 11)] == ["2", "2", "5", "5", "10", "10", "more"]
    assert [classes.latency_class(trip) for trip in (0, 9e-4, 1e-3, 9e-3, 1e-2)] == [
        "fast",
        "fast",
        "moderate",
        "moderate",
        "slow",
    ]


def test_a_situation_is_its_four_classes() -> None:
    assert classes.situation(10**7, 500, 2, 1e-4) == "medium/small/2/fast"


@pytest.mark.parametrize(
    ("size", "family", "cores", "memory", "gpu"),
    [
        ("small", "mlp", 2, 4, 2),
        ("medium", "other", 4, 16, 8),
        ("large", "recurrent", 8, 32, 16),
        ("xlarge", "mlp", 16, 64, 32),
        ("small", "transformer", 2, 6, 8),
        ("large", "transformer", 8, 48, 16),
        ("small", "convolutional", 2, 4, 4),
        ("medium", "convolutional", 4, 16, 8),
    ],
)
def test_default_needs(size: str, family: str, cores: int, memory: int, gpu: int) -> None:
    assert default_needs(size, family) == (cores, memory * GIB, gpu * GIB)

"""What makes a configuration the same one, and what an experiment may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.experiment.v1 import experiment_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.experiments.check import check_questions, checked_spec, repeats
from coordinator.experiments.configuration import (
    check_not_quarantined,
    check_parameters,
    content_of,
    hash_of,
    infer_parameter,
)
from coordinator.experiments.quarantine import find
from meshkit.errors import AimeshError, InvalidInputError, NotFoundError, PreconditionError
from tests.unit.experiments.support import spec, version


def test_the_hash_is_of_content_and_parameters_and_not_of_the_number() -> None:
    assert hash_of(version("2.0.0"), {}) == hash_of(version("2.0.1"), {}), "the same files pushed once more"
    others = [hash_of(version(content="b"), {}), hash_of(version(name="n"), {}), hash_of(version(), {"t": "1"})]
    assert len({hash_of(version(), {}), *others}) == 4
    assert hash_of(version(), {"a": "1", "b": "2"}) == hash_of(version(), {"b": "2", "a": "1"})


@given(st.text(max_size=40))
def test_every_parameter_becomes_one_that_can_be_sent(value: str) -> None:
    assert infer_parameter(value).WhichOneof("parameter_choice") is not None


def test_parameters_keep_their_type() -> None:
    assert infer_parameter("7").int64_param == 7
    assert infer_parameter("0.5").double_param == 0.5
    assert infer_parameter("true").bool_param is True
    assert [infer_parameter(text).string_param for text in ("x", '"x"', str(2**70))] == ["x", '"x"', str(2**70)]
    with pytest.raises(InvalidInputError, match="65 parameters"):
        check_parameters({str(number): "x" for number in range(65)})


def quarantine(content: str = "a", **fields: object) -> experiment_pb2.Quarantine:
    made = version(content=content)
    return experiment_pb2.Quarantine(
        hash=hash_of(made, {}),
        model="m",
        version="2.0.0",
        content=content_of(made),
        experiment="e1",
        reason="accuracy is 0.4",
        by="leader",
        **fields,  # type: ignore[arg-type]
    )


def test_a_quarantined_configuration_is_refused_until_its_review() -> None:
    held = quarantine()
    for checked, config_hash in ((version(), held.hash), (version("2.0.1"), held.hash), (version(), "")):
        with pytest.raises(PreconditionError, match=r"quarantined .* accuracy is 0\.4") as refused:
            check_not_quarantined([held], checked, config_hash)
        assert refused.value.reason == "QUARANTINED"
        assert f"review {held.hash[:12]}" in refused.value.hint
    check_not_quarantined([held], version(), hash_of(version(), {"t": "1"}))
    check_not_quarantined([held], version(content="b"))
    check_not_quarantined([held], version(name="n"))
    check_not_quarantined([quarantine(review=experiment_pb2.Review(by="key:ada"))], version())


def test_the_first_digits_name_a_hash_when_they_name_one() -> None:
    there = {f"{'a' * 9}{digit}": quarantine() for digit in "12"}
    assert find(there, "a" * 9 + "1") == "a" * 9 + "1"
    for digits, error in (("a" * 7, InvalidInputError), ("a" * 9, InvalidInputError), ("b" * 8, NotFoundError)):
        with pytest.raises(error):
            find(there, digits)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a/b"}, "'a/b' is not allowed"),
        ({"model": "M"}, "model name 'M'"),
        ({"candidate": "2"}, "'2'"),
        ({"candidate": "1.0.0"}, "both 1.0.0"),
        ({"gates": rollout_pb2.Gates(none=True)}, "decides nothing"),
        ({"parameters": {"": "x"}}, "parameter ''"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(AimeshError, match=said):
        checked_spec(spec(**fields))  # type: ignore[arg-type]


def test_defaults_and_limits() -> None:
    made = checked_spec(spec(evaluation=rollout_pb2.Evaluation(dataset="d" * 64)))
    assert (
        list(made.evaluation.metrics)
        == list(made.gates.evaluation.metrics)
        == ["accuracy", "precision", "recall", "f1"]
    )
    with pytest.raises(InvalidInputError, match="has 99 questions, and an experiment needs 100") as refused:
        check_questions(99)
    assert refused.value.reason == "BAD_DATASET"
    check_questions(100)
    assert [repeats(0, 100), repeats(0, 1000), repeats(0, 10), repeats(5, 100)] == [4, 3, 20, 5]
    for asked, questions in ((21, 100), (20, 60_000)):
        with pytest.raises(InvalidInputError, match="too many"):
            repeats(asked, questions)

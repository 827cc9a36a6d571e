from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from coordinator.registry.signatures import breaks

FP32, INT64 = registry_pb2.DATA_TYPE_FP32, registry_pb2.DATA_TYPE_INT64
Spec = registry_pb2.TensorSpec
Signature = registry_pb2.Signature


def tensor(
    name: str = "x", kind: registry_pb2.DataType.ValueType = FP32, shape: tuple[int, ...] = (-1, 3), **more: bool
) -> Spec:
    return Spec(name=name, data_type=kind, shape=shape, **more)


def signature(*inputs: Spec, outputs: tuple[Spec, ...] = (tensor("y"),), **more: int) -> Signature:
    return Signature(inputs=inputs, outputs=outputs, **more)  # type: ignore[arg-type]


shapes = st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=3).map(tuple)
specs = st.builds(
    tensor,
    st.sampled_from("abcd"),
    st.sampled_from([FP32, INT64]),
    shapes,
    optional=st.booleans(),
)
unique = st.lists(specs, max_size=4, unique_by=lambda spec: spec.name)
signatures = st.builds(
    lambda inputs, outputs, decoupled, batch: Signature(
        inputs=inputs, outputs=outputs, decoupled=decoupled, max_batch_size=batch
    ),
    unique,
    unique,
    st.booleans(),
    st.integers(0, 8),
)


@given(signatures)
def test_a_signature_never_breaks_itself(one: Signature) -> None:
    assert breaks(one, one) == []


@given(signatures, shapes)
def test_an_optional_input_and_an_output_more_break_nobody(one: Signature, shape: tuple[int, ...]) -> None:
    more = Signature()
    more.CopyFrom(one)
    more.inputs.append(tensor("new", shape=shape, optional=True))
    more.outputs.append(tensor("new", shape=shape))
    assert breaks(one, more) == []


@given(signatures, signatures, signatures)
def test_what_breaks_nobody_twice_breaks_nobody_at_once(a: Signature, b: Signature, c: Signature) -> None:
    if (b.inputs or b.outputs) and not breaks(a, b) and not breaks(b, c):
        assert breaks(a, c) == []


@given(signatures, st.data())
def test_wider_inputs_and_narrower_outputs_break_nobody_and_the_other_way_round_does(
    one: Signature, data: st.DataObject
) -> None:
    wide = Signature()
    wide.CopyFrom(one)
    fixed = [(spec, at) for spec in wide.inputs for at, size in enumerate(spec.shape) if size != -1]
    if fixed:
        spec, at = data.draw(st.sampled_from(fixed))
        spec.shape[at] = -1
        assert breaks(one, wide) == []
        assert any(f"input {spec.name!r} has the shape" in line for line in breaks(wide, one))
    narrow = Signature()
    narrow.CopyFrom(one)
    free = [(spec, at) for spec in narrow.outputs for at, size in enumerate(spec.shape) if size == -1]
    if free:
        spec, at = data.draw(st.sampled_from(free))
        spec.shape[at] = 2
        assert breaks(one, narrow) == []
        assert any(f"output {spec.name!r} has the shape" in line for line in breaks(narrow, one))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (signature(tensor()), signature(), "input 'x' is gone"),
        (signature(tensor()), signature(tensor(), tensor("z")), "input 'z' is new and cannot be left out"),
        (signature(tensor()), signature(tensor(kind=INT64)), "input 'x' is INT64, not FP32"),
        (signature(tensor()), signature(tensor(shape=(1, 3))), "input 'x' has the shape [1, 3], not [-1, 3]"),
        (signature(tensor()), signature(tensor(shape=(-1, 4))), "input 'x' has the shape [-1, 4], not [-1, 3]"),
        (signature(tensor()), signature(tensor(shape=(-1,))), "input 'x' has the shape [-1], not [-1, 3]"),
        (signature(tensor(optional=True)), signature(tensor()), "input 'x' can no longer be left out"),
        (signature(tensor()), signature(tensor(), outputs=()), "output 'y' is gone"),
        (signature(tensor()), signature(tensor(), outputs=(tensor("y", INT64),)), "output 'y' is INT64, not FP32"),
        (
            signature(tensor()),
            signature(tensor(), outputs=(tensor("y", shape=(-1, -1)),)),
            "output 'y' has the shape [-1, -1], not [-1, 3]",
        ),
        (
            signature(tensor()),
            signature(tensor(), decoupled=True),
            "answered any number of times, not once",
        ),
        (signature(tensor(), max_batch_size=8), signature(tensor()), "batches: none, not up to 8"),
        (signature(tensor(), max_batch_size=8), signature(tensor(), max_batch_size=4), "batches: up to 4, not up to 8"),
    ],
)
def test_each_break_is_named(old: Signature, new: Signature, said: str) -> None:
    [found] = breaks(old, new)
    assert found.endswith(said)


def test_a_signature_of_which_nothing_is_known_binds_nobody() -> None:
    assert breaks(Signature(), signature(tensor())) == []


def test_a_type_that_this_program_does_not_know_is_named_by_its_number() -> None:
    unknown = Spec(name="x", shape=(-1, 3))
    unknown.MergeFromString(b"\x10\x63")  # field 2, 99
    assert breaks(signature(tensor()), signature(unknown)) == ["input 'x' is 99, not FP32"]

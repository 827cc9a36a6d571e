from __future__ import annotations

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import PreconditionError
from node_agent.signature import answer_differences, check_loaded, differences

FP32, INT32 = registry_pb2.DATA_TYPE_FP32, registry_pb2.DATA_TYPE_INT32


def spec(
    name: str, *shape: int, kind: registry_pb2.DataType.ValueType = FP32, optional: bool = False
) -> registry_pb2.TensorSpec:
    return registry_pb2.TensorSpec(name=name, data_type=kind, shape=shape, optional=optional)


def config(inputs: dict[str, list[int]], outputs: dict[str, list[int]], batch: int = 0) -> model_config_pb2.ModelConfig:
    kind = model_config_pb2.TYPE_FP32
    return model_config_pb2.ModelConfig(
        max_batch_size=batch,
        input=[model_config_pb2.ModelInput(name=name, data_type=kind, dims=dims) for name, dims in inputs.items()],
        output=[model_config_pb2.ModelOutput(name=name, data_type=kind, dims=dims) for name, dims in outputs.items()],
    )


def answer(name: str, datatype: str, *shape: int) -> service_pb2.ModelInferResponse:
    tensor = service_pb2.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    return service_pb2.ModelInferResponse(outputs=[tensor])


def test_wider_inputs_and_narrower_outputs_keep_the_promise() -> None:
    promised = registry_pb2.Signature(inputs=[spec("x", 3)], outputs=[spec("y", -1)])
    assert differences(promised, config({"x": [-1]}, {"y": [3]})) == []
    assert differences(promised, config({"x": [4]}, {"y": [3]})) == ["input x has shape [4], not [3]"]
    any_size = registry_pb2.Signature(inputs=[spec("x", -1)], outputs=[spec("y", 3)])
    assert differences(any_size, config({"x": [3]}, {"y": [3]})) == ["input x has shape [3], not [-1]"]


def test_every_difference_is_named() -> None:
    promised = registry_pb2.Signature(
        inputs=[spec("x", 1, kind=INT32), spec("maybe", 1, optional=True), spec("gone", 1)],
        outputs=[spec("y", 1, 2)],
        decoupled=True,
        max_batch_size=4,
    )
    assert differences(promised, config({"x": [1], "maybe": [1], "more": [1]}, {"y": [1]})) == [
        "input more is needed, and not in the signature",
        "input maybe cannot be left out",
        "input x is FP32, not INT32",
        "input gone is not there",
        "output y has shape [1], not [1, 2]",
        "the signature says that a request gives any number of responses, and it is not so",
        "takes batches of up to 0, not 4",
    ]


def test_batches() -> None:
    promised = registry_pb2.Signature(inputs=[spec("x", -1, 3)], outputs=[spec("y", -1)], max_batch_size=4)
    assert differences(promised, config({"x": [3]}, {"y": [1]}, batch=8)) == []
    assert differences(promised, config({"x": [3]}, {"y": [1]}, batch=2)) == ["takes batches of up to 2, not 4"]


def test_answers_are_held_against_the_outputs() -> None:
    promised = registry_pb2.Signature(outputs=[spec("y", -1, 3), spec("b", 1, kind=registry_pb2.DATA_TYPE_BF16)])
    assert answer_differences(promised, [answer("y", "FP32", 7, 3), answer("b", "FP32", 1)]) == []
    wrong = [answer("y", "INT64", 7, 3), answer("y", "FP32", 3), answer("z", "FP32", 1), answer("z", "FP32", 1)]
    assert answer_differences(promised, wrong) == [
        "answered output y is INT64, not FP32",
        "answered output y has shape [3], not [-1, 3]",
        "it answers with z, which is not in the signature",
    ]


def test_a_version_without_tensors_promises_nothing() -> None:
    check_loaded(registry_pb2.ModelVersion(name="m"), config({"x": [1]}, {}), [answer("y", "FP32", 1)])
    promising = registry_pb2.ModelVersion(
        name="m", version="1.0.0", signature=registry_pb2.Signature(inputs=[spec("x", 1)])
    )
    with pytest.raises(PreconditionError, match="input x is not there") as caught:
        check_loaded(promising, config({}, {}), [])
    assert caught.value.reason == "SIGNATURE_BROKEN"


def test_a_type_that_is_not_known_here_is_a_difference_and_no_crash() -> None:
    promised = registry_pb2.Signature(inputs=[spec("x", 3, kind=99)])  # type: ignore[arg-type]
    assert differences(promised, config({"x": [3]}, {})) == ["input x is FP32, not 99"]

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from meshkit.errors import InvalidInputError, PreconditionError
from node_agent.modelconfig import KEY, Extras, adapt_config, render_config, scheduling_note


def _parse(text: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _version(
    max_batch_size: int = 0, shape: tuple[int, ...] = (-1, 3), gpu_memory: int = 0
) -> registry_pb2.ModelVersion:
    signature = registry_pb2.Signature(
        inputs=[registry_pb2.TensorSpec(name="t", data_type=registry_pb2.DATA_TYPE_BYTES, shape=shape, optional=True)],
        outputs=[registry_pb2.TensorSpec(name="v", data_type=registry_pb2.DATA_TYPE_FP32, shape=shape)],
        decoupled=True,
        max_batch_size=max_batch_size,
    )
    return registry_pb2.ModelVersion(
        name="m",
        version="1.0.0",
        runtime="llama",
        signature=signature,
        parameters={"n_ctx": "2048"},
        requirements=registry_pb2.Requirements(gpu_memory_bytes=gpu_memory),
    )


def test_rendered_config() -> None:
    config = _parse(render_config(_version(), "/venv"))
    assert (config.name, config.backend, config.max_batch_size) == ("m", "python", 0)
    assert (config.input[0].name, list(config.input[0].dims), config.input[0].optional) == ("t", [-1, 3], True)
    assert config.input[0].data_type == model_config_pb2.TYPE_STRING
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32
    assert config.model_transaction_policy.decoupled
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "n_ctx": "2048",
        "EXECUTION_ENV_PATH": "/venv",
    }


def test_gpu_memory_asks_for_one_instance_on_the_chosen_gpu() -> None:
    (group,) = _parse(render_config(_version(gpu_memory=1), "/v", gpu=1)).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1, [1])


def test_a_model_of_the_cpu_is_put_on_no_gpu() -> None:
    (group,) = _parse(render_config(_version(), "/v", gpu=1)).instance_group
    assert (group.kind, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, [])


def test_a_node_without_gpu_refuses_a_model_that_needs_one() -> None:
    with pytest.raises(PreconditionError, match="model m needs a GPU"):
        render_config(_version(gpu_memory=1), "/v")


def test_a_batching_model_loses_its_batch_dimension() -> None:
    config = _parse(render_config(_version(max_batch_size=8), "/v"))
    assert list(config.input[0].dims) == [3]
    assert list(_parse(render_config(_version(8, (-1,)), "/v")).input[0].dims) == [1]
    with pytest.raises(InvalidInputError, match="batch dimension"):
        render_config(_version(8, ()), "/v")


@pytest.mark.parametrize("name", [name for name in registry_pb2.DataType.keys() if "UNSPECIFIED" not in name])  # noqa: SIM118
def test_every_data_type_has_tritons(name: str) -> None:
    version = _version()
    version.signature.inputs[0].data_type = registry_pb2.DataType.Value(name)
    assert _parse(render_config(version, "/v")).input[0].data_type != model_config_pb2.TYPE_INVALID


def test_no_data_type_is_refused() -> None:
    version = _version()
    version.signature.inputs[0].data_type = registry_pb2.DATA_TYPE_UNSPECIFIED
    with pytest.raises(InvalidInputError, match="'t' has no data type that is known here: 0"):
        render_config(version, "/v")


def test_the_users_config_keeps_all_but_name_and_environment() -> None:
    text = """
      name: "mine" backend: "python" max_batch_size: 4
      dynamic_batching { max_queue_delay_microseconds: 100 }
      parameters { key: "k" value { string_value: "v" } }
      parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/elsewhere" } }
    """
    expected = _parse(text)
    expected.name = "theirs"
    expected.parameters["EXECUTION_ENV_PATH"].string_value = "/venv"
    assert _parse(adapt_config(text, "theirs", "/venv")) == expected


def test_other_backends_get_no_environment() -> None:
    assert not _parse(adapt_config('backend: "onnxruntime"', "m", "/venv")).parameters


def test_scheduling_goes_to_the_queue_of_models_that_batch() -> None:
    wanted = routing_pb2.Scheduling(priority_levels=3, max_queue_size=8)
    wanted.queue_timeout.FromMilliseconds(250)
    batching = _parse(render_config(_version(8), "/v", extras=Extras("key", wanted))).dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (3, 3)
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (8, 250_000)
    assert policy.allow_timeout_override
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    own = "max_batch_size: 4 dynamic_batching { preferred_batch_size: [4] priority_levels: 9 }"
    kept = _parse(adapt_config(own, "m", "", Extras("key", routing_pb2.Scheduling(max_queue_size=1))))
    assert list(kept.dynamic_batching.preferred_batch_size) == [4], "what the deployment does not speak of"
    assert kept.dynamic_batching.priority_levels == 0
    assert kept.parameters[KEY].string_value == "key"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_size: 0", "takes no batches"),
        ("max_batch_size: 4 sequence_batching {}", "sequence_batching"),
        ('platform: "ensemble" max_batch_size: 4', "ensemble"),
    ],
)
def test_where_scheduling_cannot_go_it_is_left_out_and_said(text: str, said: str) -> None:
    config = _parse(adapt_config(text, "m", "", Extras("", routing_pb2.Scheduling(max_queue_size=1))))
    assert not config.HasField("dynamic_batching")
    assert said in scheduling_note(config)


def test_outside_a_virtual_environment_none_is_named() -> None:
    assert set(_parse(render_config(_version(), "")).parameters) == {"n_ctx"}


def test_a_config_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_batch_sise"):
        adapt_config("max_batch_sise: 3", "m", "/venv")

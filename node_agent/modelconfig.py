"""Triton's config.pbtxt of a model version. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from meshkit.errors import InvalidInputError, PreconditionError

ENVIRONMENT = "EXECUTION_ENV_PATH"
"""Parameter that makes the Python backend use a virtual environment. Without it, it takes the base interpreter's."""


KEY = "AIMESH_KEY"
"""Parameter that says which version, scheduling and runtime a model was loaded with: it can be asked of Triton."""


_NO_LIMIT_US = 365 * 24 * 3600 * 1_000_000
"""Triton lets a request ask for less than the default only, so that a default of none would allow no request's own."""


def python_environment() -> str:
    """The virtual environment of this process, for the models; empty outside of one, where the stub needs no help."""
    return sys.prefix if sys.prefix != sys.base_prefix else ""


@dataclass(frozen=True)
class Extras:
    """What is written into a model's configuration beyond what its version says."""

    key: str = ""
    scheduling: routing_pb2.Scheduling | None = None


NO_EXTRAS = Extras()


def render_config(
    version: registry_pb2.ModelVersion, environment: str, gpu: int | None = None, extras: Extras = NO_EXTRAS
) -> str:
    """config.pbtxt of a version that a runtime's template serves.

    `environment` is the virtual environment's directory, empty for none; `gpu` the index of the GPU for a model that
    needs one. A batching model's shapes lose their first, the batch dimension, as Triton adds it itself. Raises
    InvalidInputError when one of its tensors has none, PreconditionError when a GPU is needed and none is given.
    """
    signature = version.signature
    config = model_config_pb2.ModelConfig(
        name=version.name,
        backend="python",
        max_batch_size=signature.max_batch_size,
        input=[
            model_config_pb2.ModelInput(
                name=spec.name, data_type=_data_type(spec), dims=_dims(version, spec), optional=spec.optional
            )
            for spec in signature.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=_dims(version, spec))
            for spec in signature.outputs
        ],
        instance_group=[_instance(version, gpu)],
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=signature.decoupled),
    )
    _set_parameters(config, {**version.parameters, **_environment(environment)})
    return _finished(config, extras)


def adapt_config(text: str, name: str, environment: str, extras: Extras = NO_EXTRAS) -> str:
    """A user's own config.pbtxt with the model's name and, for Python models, the virtual environment set.

    Everything else stays as it is. Raises InvalidInputError when it is no model configuration.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise InvalidInputError(
            f"config.pbtxt of model {name!r} is no Triton model configuration: {error}",
            hint="see Triton's model configuration documentation",
        ) from None
    config.name = name
    if config.backend == "python":
        _set_parameters(config, _environment(environment))
    return _finished(config, extras)


def key_in(text: str) -> str:
    """The KEY that a config.pbtxt has; empty for none, and for what is no configuration."""
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError:
        return ""
    return str(config.parameters[KEY].string_value) if KEY in config.parameters else ""


def scheduling_obstacle(config: model_config_pb2.ModelConfig) -> str:
    """Why Triton's queue of this model takes no priorities, limits or timeouts; empty when it does.

    Without batching, Triton 2.51 takes such a configuration and then lets all but the first request of a burst expire.
    """
    if config.HasField("sequence_batching"):
        return "its configuration has sequence_batching, whose queue knows none"
    if config.platform == "ensemble":
        return "an ensemble has no queue of its own"
    if config.max_batch_size == 0:
        return "the model takes no batches (max_batch_size is 0), and Triton has queues for those that do only"
    return ""


def scheduling_note(config: model_config_pb2.ModelConfig) -> str:
    """For people, of a model that was to be scheduled; empty when it is."""
    obstacle = scheduling_obstacle(config)
    return f"its scheduling is not applied: {obstacle}" if obstacle else ""


def _finished(config: model_config_pb2.ModelConfig, extras: Extras) -> str:
    if extras.key:
        _set_parameters(config, {KEY: extras.key})
    if extras.scheduling is not None and not scheduling_obstacle(config):
        _schedule(config.dynamic_batching, extras.scheduling)
    return str(text_format.MessageToString(config))


def _schedule(batching: model_config_pb2.ModelDynamicBatching, wanted: routing_pb2.Scheduling) -> None:
    """What the deployment says of the queue, over what the model's own configuration says of it."""
    batching.SetInParent()
    batching.priority_levels = wanted.priority_levels
    batching.default_priority_level = (
        (wanted.default_priority or wanted.priority_levels) if wanted.priority_levels else 0
    )
    batching.priority_queue_policy.clear()
    policy = batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = wanted.queue_timeout.ToMicroseconds() or _NO_LIMIT_US
    policy.allow_timeout_override = True
    policy.max_queue_size = wanted.max_queue_size


def _instance(version: registry_pb2.ModelVersion, gpu: int | None) -> model_config_pb2.ModelInstanceGroup:
    """One instance. On a GPU it must be named: without, Triton makes an instance on each GPU of the node."""
    group = model_config_pb2.ModelInstanceGroup
    if version.requirements.gpu_memory_bytes == 0:
        return group(count=1, kind=group.KIND_CPU)
    if gpu is None:
        raise PreconditionError(
            f"model {version.name} needs a GPU, and this node has none that can be read",
            hint="see the node's gpu_error in status, or push the model without GPU memory to run it on the CPU",
        )
    return group(count=1, kind=group.KIND_GPU, gpus=[gpu])


def _environment(directory: str) -> dict[str, str]:
    return {ENVIRONMENT: directory} if directory else {}


def _set_parameters(config: model_config_pb2.ModelConfig, values: dict[str, str]) -> None:
    for key, value in sorted(values.items()):
        config.parameters[key].string_value = value


def _data_type(spec: registry_pb2.TensorSpec) -> int:
    """The registry names types as KServe does, Triton's configuration calls BYTES a string."""
    known = registry_pb2.DataType.DESCRIPTOR.values_by_number.get(spec.data_type)
    if not spec.data_type or known is None:
        raise InvalidInputError(f"tensor {spec.name!r} has no data type that is known here: {spec.data_type}")
    name = known.name.removeprefix("DATA_TYPE_")
    return int(model_config_pb2.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"))


def _dims(version: registry_pb2.ModelVersion, spec: registry_pb2.TensorSpec) -> list[int]:
    if version.signature.max_batch_size == 0:
        return list(spec.shape)
    if not spec.shape:
        raise InvalidInputError(
            f"tensor {spec.name!r} of {version.name} batches (max_batch_size "
            f"{version.signature.max_batch_size}) and has no batch dimension"
        )
    # Triton takes no empty list of dims: a tensor of the batch dimension alone has one element a request.
    return list(spec.shape[1:]) or [1]

"""Whether what Triton loaded is what its version promises: names, types and shapes of tensors. Pure.

A caller builds requests and reads answers by the version's signature. An input may therefore be wider than promised
and never narrower; an output the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tritonclient.grpc import model_config_pb2, service_pb2

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import PreconditionError

_ANY = -1
_PREFIX = "DATA_TYPE_"


def check_loaded(
    version: registry_pb2.ModelVersion,
    config: model_config_pb2.ModelConfig,
    responses: Iterable[service_pb2.ModelInferResponse],
) -> None:
    """Raises PreconditionError naming each difference between a version's signature and what was loaded.

    `responses` are the answers to its test request. A version that names no tensors promises nothing.
    """
    if not version.signature.inputs and not version.signature.outputs:
        return
    found = differences(version.signature, config)
    found += answer_differences(version.signature, responses) if not found else []
    if found:
        raise PreconditionError(
            f"{version.name}:{version.version} is not what its signature says: {'; '.join(found)}",
            hint="push it again, as another version, with the signature that it has",
            reason="SIGNATURE_BROKEN",
        )


def differences(signature: registry_pb2.Signature, config: model_config_pb2.ModelConfig) -> list[str]:
    """What the loaded configuration has otherwise than the signature, a text each."""
    batch = [_ANY] if config.max_batch_size > 0 else []
    inputs = {one.name: (_config_type(one.data_type), [*batch, *one.dims]) for one in config.input}
    outputs = {one.name: (_config_type(one.data_type), [*batch, *one.dims]) for one in config.output}
    promised = {spec.name: spec for spec in signature.inputs}
    needed = [one.name for one in config.input if not one.optional]
    found = [f"input {name} is needed, and not in the signature" for name in needed if name not in promised]
    found += [f"input {name} cannot be left out" for name in needed if name in promised and promised[name].optional]
    for spec in signature.inputs:
        found += _tensor("input", spec, inputs.get(spec.name), narrower=False)
    for spec in signature.outputs:
        found += _tensor("output", spec, outputs.get(spec.name), narrower=True)
    if signature.decoupled != config.model_transaction_policy.decoupled:
        words = "gives any number of responses" if signature.decoupled else "gives one response"
        found.append(f"the signature says that a request {words}, and it is not so")
    if signature.max_batch_size > max(0, config.max_batch_size) or (config.max_batch_size > 0) != bool(
        signature.max_batch_size
    ):
        found.append(f"takes batches of up to {max(0, config.max_batch_size)}, not {signature.max_batch_size}")
    return found


def answer_differences(
    signature: registry_pb2.Signature, responses: Iterable[service_pb2.ModelInferResponse]
) -> list[str]:
    """What in the answers is otherwise than the signature's outputs, a text each, every one once."""
    promised = {spec.name: spec for spec in signature.outputs}
    found: dict[str, None] = {}
    for response in responses:
        for tensor in response.outputs:
            spec = promised.get(tensor.name)
            if spec is None:
                found[f"it answers with {tensor.name}, which is not in the signature"] = None
                continue
            given = (tensor.datatype, list(tensor.shape))
            found.update(dict.fromkeys(_tensor("answered output", spec, given, narrower=True)))
    return list(found)


def _tensor(
    word: str, spec: registry_pb2.TensorSpec, given: tuple[str, list[int]] | None, *, narrower: bool
) -> list[str]:
    """What a tensor has otherwise; `narrower` when it may be that."""
    if given is None:
        return [f"{word} {spec.name} is not there"]
    data_type, shape = given
    said = _said_type(spec.data_type)
    # NumPy has no BF16: a Python model answers with FP32 in its place.
    same = data_type == said or (data_type, said) == ("FP32", "BF16")
    found = [] if same else [f"{word} {spec.name} is {data_type}, not {said}"]
    # Triton takes no empty list of dims: a tensor of the batch dimension alone has one element a request.
    bare = len(spec.shape) == 1 and shape[1:] == [1]
    if not bare and not _fits(spec.shape, shape, narrower=narrower):
        found.append(f"{word} {spec.name} has shape {shape}, not {list(spec.shape)}")
    return found


def _said_type(value: int) -> str:
    """By the names of KServe; one that is not known, from a newer mesh, by its number."""
    known = registry_pb2.DataType.DESCRIPTOR.values_by_number.get(value)
    return known.name.removeprefix(_PREFIX) if known is not None else str(value)


def _fits(said: Sequence[int], given: Sequence[int], *, narrower: bool) -> bool:
    """-1 is any size, on either side; a promise of any size is kept by one size only where that may be narrower."""
    if len(said) != len(given):
        return False
    return all(
        one == other or other == _ANY or (one == _ANY and narrower) for one, other in zip(said, given, strict=True)
    )


def _config_type(value: int) -> str:
    """By the names of KServe; Triton's configuration calls BYTES a string."""
    name = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name

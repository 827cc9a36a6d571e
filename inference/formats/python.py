"""The user's own Triton model: a directory with config.pbtxt and 1/model.py."""

from __future__ import annotations

import ast
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aimesh.registry.v1 import registry_pb2
from inference import self_test
from inference.formats.source import MIB, Description, Source, Wishes, refuse_tensors
from inference.signature import tensor
from meshkit.errors import InvalidInputError

CONFIG = "config.pbtxt"
MODEL = "1/model.py"
_STUB_BYTES = 64 * MIB


def recognises(source: Source) -> bool:
    """Whether the directory is laid out as Triton's Python backend wants it."""
    return CONFIG in source.files or MODEL in source.files


def describe(source: Source, wishes: Wishes) -> Description:
    """Reads config.pbtxt. Raises InvalidInputError when it does not parse, names another backend, or lacks tensors.

    Memory is guessed: the files, which the model may hold once, and Triton's stub with NumPy.
    """
    refuse_tensors(wishes, "python")
    for name in (CONFIG, MODEL):
        if name not in source.files:
            raise InvalidInputError(
                f"{source.name} has no {name}", hint=f"a python model is a directory with {CONFIG} and {MODEL}"
            )
    files = tuple(name for name in source.files if name == CONFIG or name.startswith("1/"))
    if other := [name for name in source.files if name not in files and name != self_test.FILE]:
        raise InvalidInputError(
            f"{source.name}: {other[0]} is neither {CONFIG} nor below 1/", hint="move it below 1/, or leave it out"
        )
    _check_code(source.path(MODEL))
    config = read_config(source.path(CONFIG))
    return Description(
        files=files,
        signature=signature(config),
        requirements=registry_pb2.Requirements(memory_bytes=source.size(files) + _STUB_BYTES),
        parameters={**wishes.parameters, "entry": MODEL},
    )


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """A config.pbtxt for the Python backend. Raises InvalidInputError."""
    try:
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{CONFIG} does not parse: {error}", hint="see Triton's model configuration") from None
    if config.backend != "python":
        raise InvalidInputError(
            f"{CONFIG} names backend {config.backend!r}", hint='write backend: "python"', reason="WRONG_BACKEND"
        )
    if not config.input or not config.output:
        raise InvalidInputError(f"{CONFIG} must list every input and output with type and dims")
    return config


def signature(config: model_config_pb2.ModelConfig) -> registry_pb2.Signature:
    """Full shapes: a batching model's dims get a leading -1."""
    batch = [-1] if config.max_batch_size > 0 else []
    return registry_pb2.Signature(
        inputs=[
            tensor(one.name, _data_type(one.name, one.data_type), [*batch, *one.dims], optional=one.optional)
            for one in config.input
        ],
        outputs=[tensor(one.name, _data_type(one.name, one.data_type), [*batch, *one.dims]) for one in config.output],
        decoupled=config.model_transaction_policy.decoupled,
        max_batch_size=max(0, config.max_batch_size),
    )


def _data_type(name: str, value: int) -> str:
    kind = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    if kind == "INVALID":
        raise InvalidInputError(f"{CONFIG}: tensor {name!r} has no data_type")
    return "BYTES" if kind == "STRING" else kind


def _check_code(path: Path) -> None:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InvalidInputError(f"{MODEL} is not valid Python: {error}") from None
    if not any(isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel" for node in ast.walk(tree)):
        raise InvalidInputError(
            f"{MODEL} has no class TritonPythonModel", hint="Triton's Python backend runs that class"
        )

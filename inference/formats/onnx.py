"""ONNX models, served by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aimesh.registry.v1 import registry_pb2
from inference import self_test
from inference.formats.source import (
    MIB,
    Description,
    Source,
    Wishes,
    check_device,
    check_keys,
    only_file,
    refuse_tensors,
    whole_number,
)
from inference.signature import tensor
from meshkit.errors import InvalidInputError, PreconditionError

PARAMETERS = ("device", "n_threads")
_RUNTIME_BYTES = 90 * MIB
_TYPES = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip


def recognises(source: Source) -> bool:
    """Whether any file looks like ONNX, which has no magic number: its first field and its name have to do."""
    return bool(_candidates(source))


def describe(source: Source, wishes: Wishes) -> Description:
    """Opens the one model in onnxruntime and reads its tensors. Raises InvalidInputError.

    Memory: the weights twice (as read, and as packed for the processor) and onnxruntime itself.
    """
    refuse_tensors(wishes, "onnx")
    check_keys(wishes.parameters, PARAMETERS, "onnx")
    whole_number(wishes.parameters, "n_threads", 1, 1, 1024)
    on_gpu = check_device(wishes.parameters)
    entry = only_file(source, _candidates(source), "ONNX file")
    # Weights may lie in files of any name beside the model.
    files = tuple(name for name in source.files if name != self_test.FILE)
    if "model.py" in files:
        raise InvalidInputError(
            "a file beside the model is named model.py", hint="rename it, or push the .onnx file alone"
        )
    size = source.size(files)
    return Description(
        files=files,
        signature=read(source.path(entry)),
        requirements=registry_pb2.Requirements(
            memory_bytes=2 * size + _RUNTIME_BYTES, gpu_memory_bytes=2 * size + _RUNTIME_BYTES if on_gpu else 0
        ),
        parameters={**wishes.parameters, "entry": entry},
    )


def read(path: Path) -> registry_pb2.Signature:
    """The tensors of an ONNX model that onnxruntime accepts. Raises InvalidInputError when it does not."""
    try:
        import onnxruntime  # only a machine that pushes or serves ONNX files needs it
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError:
        raise PreconditionError("reading ONNX files needs onnxruntime", hint="pip install 'aimesh[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented,
            errors.RuntimeException, errors.NoSuchFile) as error:  # fmt: skip
        raise InvalidInputError(
            f"{path.name} is not an ONNX model that onnxruntime can run: {error}", hint="export or copy it again"
        ) from None
    return registry_pb2.Signature(
        inputs=[_spec(one) for one in session.get_inputs()], outputs=[_spec(one) for one in session.get_outputs()]
    )


def _spec(value: Any) -> registry_pb2.TensorSpec:
    if value.type not in _TYPES:
        raise InvalidInputError(
            f"tensor {value.name!r} is {value.type}, which cannot be sent", hint="export it with plain tensors"
        )
    return tensor(value.name, _TYPES[value.type], [size if isinstance(size, int) else -1 for size in value.shape])


def _candidates(source: Source) -> list[str]:
    """Files whose first field is ir_version, a small number (onnx.proto), and that are called .onnx or stand alone."""
    alone = len(source.files) == 1
    return [
        name
        for name in source.files
        if (alone or name.endswith(".onnx")) and source.head(name, 1) == b"\x08" and 1 <= source.head(name, 2)[-1] <= 32
    ]

"""Triton Python-backend model that runs an ONNX model in onnxruntime.

Inputs and outputs go through as they come, whatever their first dimension; requests are not joined.

Parameters (text): `entry` (the .onnx file), `device` (cpu or cuda), `n_threads`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

REFUSALS = (ort_errors.InvalidArgument, ort_errors.RuntimeException, ort_errors.Fail)
"""What onnxruntime raises for inputs that the model's own operators do not take."""


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the model. Raises when the file is broken or the device is not there."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        path = Path(args["model_repository"]) / args["model_version"] / parameters["entry"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("n_threads", len(os.sched_getaffinity(0))))
        self._session = onnxruntime.InferenceSession(
            path, options, providers=_providers(parameters.get("device", "cpu"), args)
        )
        self._inputs = {one["name"] for one in config["input"]}
        self._outputs = [one["name"] for one in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            results = self._session.run(self._outputs, {one.name(): _text(one.as_numpy()) for one in request.inputs()})
        except UnicodeDecodeError as error:
            return _refusal(f"text is not UTF-8: {error}")
        except REFUSALS as error:
            return _refusal(f"the model refused the input: {error}")
        tensors = zip(self._outputs, results, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, _bytes(array)) for name, array in tensors])


def _refusal(reason: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.INVALID_ARG))


def _providers(device: str, args: Mapping[str, str]) -> list[Any]:
    """For cuda, the GPU is the one that Triton gives the instance."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise pb_utils.TritonModelException(
            "parameter device = cuda, but this node's onnxruntime has no CUDA provider: install onnxruntime-gpu"
        )
    index = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def _text(array: Any) -> Any:
    """onnxruntime takes text where Triton gives bytes."""
    if array.dtype != np.object_:
        return array
    return np.array([value.decode() for value in array.reshape(-1)], dtype=np.object_).reshape(array.shape)


def _bytes(array: Any) -> Any:
    if array.dtype != np.object_:
        return np.ascontiguousarray(array)
    return np.array([str(value).encode() for value in array.reshape(-1)], dtype=np.object_).reshape(array.shape)

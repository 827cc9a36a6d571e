"""Triton Python-backend model that runs a PyTorch program: a torch.export archive or TorchScript.

Inputs and outputs are taken in the configuration's order: the flattened arguments of the program, and its flattened
results. The first dimension is whatever the request brings; requests are not joined.

Parameters (text): `entry` (the file), `kind` (exported or script), `device` (cpu or cuda), `n_threads`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Whatever a file asks for, torch.load takes tensors only and never runs a pickle.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from torch.utils import _pytree as pytree

Program = Callable[[list[torch.Tensor]], Any]


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the program. Raises when the file or the device is not there."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        torch.set_num_threads(int(parameters.get("n_threads", len(os.sched_getaffinity(0)))))
        self._device = _device(parameters.get("device", "cpu"), args)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise pb_utils.TritonModelException("parameter device = cuda, but torch finds no CUDA device on this node")
        path = Path(args["model_repository"]) / args["model_version"] / parameters["entry"]
        load = load_script if parameters.get("kind") == "script" else load_exported
        self._run = load(path, self._device)
        self._inputs = [one["name"] for one in config["input"]]
        self._outputs = [(one["name"], pb_utils.triton_string_to_numpy(one["data_type"])) for one in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; a program's own complaint is the caller's error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            with torch.inference_mode():
                # A copy, because a program may write into its arguments and Triton's memory is read-only.
                results = self._run([torch.tensor(array, device=self._device) for array in arrays])
            return pb_utils.InferenceResponse(self._pack(pytree.tree_leaves(results)))
        except torch.OutOfMemoryError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE))
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"the program refused the input: {error}", pb_utils.TritonError.INVALID_ARG)
            )

    def _pack(self, results: list[torch.Tensor]) -> list[Any]:
        if len(results) != len(self._outputs):
            raise ValueError(f"it gives {len(results)} tensors, its signature says {len(self._outputs)}")
        return [
            pb_utils.Tensor(name, np.ascontiguousarray(result.cpu().numpy(), dtype=dtype))
            for (name, dtype), result in zip(self._outputs, results, strict=True)
        ]


def _device(name: str, args: Mapping[str, str]) -> torch.device:
    """For cuda, the GPU that Triton gives the instance."""
    if name == "cuda" and args["model_instance_kind"] == "GPU":
        return torch.device(name, int(args["model_instance_device_id"]))
    return torch.device(name)


def load_exported(path: Path, device: torch.device) -> Program:
    """A torch.export program that takes its arguments flat."""
    program = torch.export.load(path)
    spec = program.call_spec.in_spec
    module = program.module().to(device)

    def run(flat: list[torch.Tensor]) -> Any:
        args, kwargs = pytree.tree_unflatten(flat, spec)
        return module(*args, **kwargs)

    return run


def load_script(path: Path, device: torch.device) -> Program:
    """A TorchScript program."""
    load: Callable[..., torch.nn.Module] = torch.jit.load  # typed here, as torch does not
    module = load(path, map_location=device).eval()
    return lambda flat: module(*flat)

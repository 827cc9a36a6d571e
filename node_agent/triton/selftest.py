"""A first inference through the Python backend, before the node calls itself ready.

With NumPy 2 in the models' environment this Triton's Python backend does not fail: it reads [1, 2, 3, 4] as
[1, 1, 1, 1]. Only a look at an answer tells.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import PreconditionError
from node_agent.modelconfig import python_environment, render_config
from node_agent.triton.client import TritonClient

NAME = "_aimesh_selftest"
"""No user's model can have this name."""
_TIMEOUT_S = 30.0
_MODEL = '''"""Adds one."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]) for x in inputs]
'''


async def run_selftest(client: TritonClient, repository: Path) -> None:
    """Loads a model that adds one, asks it for [1, 2, 3, 4] + 1, unloads it. Raises PreconditionError when wrong."""
    _write_model(repository / NAME)
    try:
        await client.load(NAME, _TIMEOUT_S)
        answer = await client.infer(_request(), _TIMEOUT_S)
        _check(answer)
        await client.unload(NAME)
    finally:
        shutil.rmtree(repository / NAME, ignore_errors=True)


def _write_model(directory: Path) -> None:
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(render_config(_version(), python_environment()))
    (directory / "1" / "model.py").write_text(_MODEL)


def _version() -> registry_pb2.ModelVersion:
    def tensor(name: str) -> registry_pb2.TensorSpec:
        return registry_pb2.TensorSpec(name=name, data_type=registry_pb2.DATA_TYPE_INT32, shape=[4])

    signature = registry_pb2.Signature(inputs=[tensor("x")], outputs=[tensor("y")])
    return registry_pb2.ModelVersion(name=NAME, signature=signature)


def _request() -> service_pb2.ModelInferRequest:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="INT32", shape=[4])
    content = np.array([1, 2, 3, 4], np.int32).tobytes()
    return service_pb2.ModelInferRequest(model_name=NAME, inputs=[tensor], raw_input_contents=[content])


def _check(answer: service_pb2.ModelInferResponse) -> None:
    contents = answer.raw_output_contents
    got = np.frombuffer(contents[0], np.int32).tolist() if len(contents) == 1 else []
    if got != [2, 3, 4, 5]:
        raise PreconditionError(
            f"Triton's Python backend gave {got} for [1, 2, 3, 4] + 1",
            hint=f"it needs NumPy 1.x in {sys.prefix}; the agent sees NumPy {np.__version__} (pip install 'numpy<2')",
            reason="SELF_TEST_WRONG",
        )

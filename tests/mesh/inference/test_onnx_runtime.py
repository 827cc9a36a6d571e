from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from inference.packaging import Package, package
from tests.mesh.inference.ask import tensor
from tests.mesh.inference.conftest import Server
from tests.unit.inference.samples import onnx_bytes

NAME = "linear-onnx"
WEIGHTS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Package:
    path: Path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    path.write_bytes(onnx_bytes())
    return package(path, NAME, "1.0.0")


@pytest.fixture(scope="module")
def model(server: Server, packed: Package) -> Iterator[Server]:
    server.load(packed)
    yield server
    server.unload(NAME)


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_the_answer_is_right_for_any_batch(model: Server, batch: int) -> None:
    x = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
    y = model.client.infer(NAME, [tensor("x", x)]).as_numpy("y")
    np.testing.assert_array_equal(y, x @ WEIGHTS)


def test_wrong_inputs_are_refused_with_what_was_expected(model: Server) -> None:
    with pytest.raises(InferenceServerException, match="unexpected inference input 'z' for model"):
        model.client.infer(NAME, [tensor("z", np.zeros((1, 3), np.float32))])
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,3\], got \[1,4\]"):
        model.client.infer(NAME, [tensor("x", np.zeros((1, 4), np.float32))])
    with pytest.raises(InferenceServerException, match="data-type is 'FP64', but model 'linear-onnx' expects 'FP32'"):
        model.client.infer(NAME, [tensor("x", np.zeros((1, 3)))])


def test_memory_is_near_its_estimate(model: Server, packed: Package) -> None:
    resident = model.stub(NAME).memory_info().rss
    estimate = packed.version.requirements.memory_bytes
    print(f"resident {resident >> 20} MiB, estimate {estimate >> 20} MiB")
    assert 0.8 * resident < estimate < 2 * resident, "in the right order; the kernel counts differently each time"


def test_a_gpu_that_is_not_there_is_said_at_load(server: Server, packed: Package) -> None:
    asked = package(next(iter(packed.paths.values())), "linear-gpu", "1.0.0", parameters={"device": "cuda"})
    with pytest.raises(InferenceServerException, match="onnxruntime has no CUDA provider"):
        server.load(asked)

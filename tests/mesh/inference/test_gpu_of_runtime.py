"""Which GPU a runtime takes. No machine of the tests has two: the device is looked at, not used."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest

from inference import runtimes
from tests.unit.inference.needs import without_torch

CPU = {"model_instance_kind": "CPU", "model_instance_device_id": "0"}
SECOND_GPU = {"model_instance_kind": "GPU", "model_instance_device_id": "1"}


def template(monkeypatch: pytest.MonkeyPatch, runtime: str) -> ModuleType:
    """A runtime's model.py outside of Triton, whose own module exists only inside."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # the template sets it: undone after the test
    spec = spec_from_file_location(f"{runtime}_template", Path(runtimes.__path__[0]) / runtime / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_onnx_takes_the_gpu_of_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = template(monkeypatch, "onnx")._providers
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert providers("cuda", SECOND_GPU) == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    assert providers("cuda", CPU) == [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
    assert providers("cpu", SECOND_GPU) == ["CPUExecutionProvider"]


@without_torch
def test_torch_takes_the_gpu_of_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    device = template(monkeypatch, "torch")._device
    assert str(device("cuda", SECOND_GPU)) == "cuda:1"
    assert str(device("cuda", CPU)) == "cuda"
    assert str(device("cpu", SECOND_GPU)) == "cpu"

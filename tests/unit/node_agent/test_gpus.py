"""GPUs through a driver that is told how to fail: the failure modes cannot be had on demand from a real one."""

# ruff: noqa: N802  # NVML's own names

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from aimesh.membership.v1 import membership_pb2
from node_agent.gpus import GpuReader


class Driver:
    """NVML with `count` GPUs; `failing` maps a function's name, or (name, GPU), to the error that it raises."""

    def __init__(self, count: int, failing: dict[Any, int] | None = None) -> None:
        self.count = count
        self.failing = failing or {}

    def _check(self, function: str, gpu: int | None = None) -> None:
        for key in (function, (function, gpu)):
            if key in self.failing:
                raise pynvml.NVMLError(self.failing[key])

    def nvmlInit(self) -> None:
        self._check("init")

    def nvmlDeviceGetCount(self) -> int:
        self._check("count")
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check("handle", index)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        self._check("uuid", handle)
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "H200"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._check("memory", handle)
        return SimpleNamespace(total=1000, used=250)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._check("utilization", handle)
        return SimpleNamespace(gpu=40)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 55

    def nvmlDeviceGetTotalEccErrors(self, handle: int, error_type: int, counter_type: int) -> int:
        self._check("ecc", handle)
        assert (error_type, counter_type) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return 3

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        self._check("processes", handle)
        return [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8 + handle, usedGpuMemory=None)]


def _reader(driver: Driver, *, present: bool = True) -> GpuReader:
    return GpuReader(driver, lambda: present)


def test_two_gpus() -> None:
    reader = _reader(Driver(2))
    inventory = reader.inventory()
    assert inventory.error == ""
    assert inventory.gpus[1] == membership_pb2.Gpu(index=1, uuid="GPU-1", name="H200", memory_bytes=1000)
    assert reader.load()[0] == membership_pb2.GpuLoad(
        index=0, utilization=0.4, memory_used_bytes=250, temperature_celsius=55, ecc_uncorrected_errors=3
    )


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_machine_without_gpu_is_normal(code: int) -> None:
    reader = _reader(Driver(0, {"init": code}), present=False)
    assert reader.inventory().gpus == ()
    assert reader.inventory().error == ""
    assert reader.load() == []


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_UNKNOWN]
)
def test_a_driver_that_is_there_and_broken_is_reported(code: int) -> None:
    inventory = _reader(Driver(0, {"init": code})).inventory()
    assert inventory.gpus == ()
    assert inventory.error.startswith("NVML: ")


def test_a_lost_gpu_is_named_and_the_others_stay() -> None:
    reader = _reader(
        Driver(3, {("uuid", 1): pynvml.NVML_ERROR_GPU_IS_LOST, ("handle", 2): pynvml.NVML_ERROR_NO_PERMISSION})
    )
    inventory = reader.inventory()
    assert [gpu.index for gpu in inventory.gpus] == [0]
    assert "GPU 1: GPU is lost" in inventory.error
    assert "GPU 2: " in inventory.error


def test_what_a_gpu_does_not_tell_is_zero() -> None:
    driver = Driver(1, {"ecc": pynvml.NVML_ERROR_NOT_SUPPORTED, "utilization": pynvml.NVML_ERROR_NOT_SUPPORTED})
    (load,) = _reader(driver).load()
    assert (load.ecc_uncorrected_errors, load.utilization, load.memory_used_bytes) == (0, 0.0, 250)


def test_a_driver_that_comes_back_is_found() -> None:
    driver = Driver(1, {"init": pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
    reader = _reader(driver)
    assert reader.inventory().gpus == ()
    driver.failing.clear()
    assert len(reader.inventory().gpus) == 1


def test_the_real_library_is_safe_to_ask() -> None:
    inventory = GpuReader().inventory()
    assert all(gpu.memory_bytes > 0 for gpu in inventory.gpus)


def test_memory_by_process_is_summed_over_the_gpus_that_tell() -> None:
    assert _reader(Driver(2)).by_process() == {7: 200, 8: 0, 9: 0}
    failing = {("processes", 0): pynvml.NVML_ERROR_NOT_SUPPORTED, ("handle", 1): pynvml.NVML_ERROR_GPU_IS_LOST}
    assert _reader(Driver(3, failing)).by_process() == {7: 100, 10: 0}
    assert _reader(Driver(1, {"init": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})).by_process() == {}

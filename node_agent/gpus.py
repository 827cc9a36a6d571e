"""GPUs as NVML sees them. No GPU is a normal case; a driver that is there and broken is reported, never fatal."""

# ruff: noqa: N802  # the protocol has NVML's own names

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pynvml

from aimesh.membership.v1 import membership_pb2

_DRIVER = Path("/proc/driver/nvidia/version")


class Nvml(Protocol):
    """The part of NVML that is used, as pynvml names it; every function raises pynvml.NVMLError."""

    def nvmlInit(self) -> None:
        """Connects to the driver."""

    def nvmlDeviceGetCount(self) -> int:
        """How many GPUs there are."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        """A GPU."""

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        """Its UUID."""

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        """Its product name."""

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        """Its memory: total and used, in bytes."""

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        """How busy it is: gpu, in percent."""

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        """Degrees Celsius."""

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, error_type: int, counter_type: int) -> int:
        """How many ECC errors of a type."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        """Processes that compute on it: pid, and usedGpuMemory in bytes or None."""


@dataclass(frozen=True)
class GpuInventory:
    """What there is; `error` says why something that is there could not be read."""

    gpus: tuple[membership_pb2.Gpu, ...] = ()
    error: str = ""


class GpuReader:
    """Reads all GPUs of the machine. Calls may block for some milliseconds."""

    def __init__(self, nvml: Nvml = pynvml, driver_present: Callable[[], bool] = _DRIVER.exists) -> None:
        self._nvml = nvml
        self._driver_present = driver_present
        self._connected = False

    def inventory(self) -> GpuInventory:
        """The GPUs by index. One that cannot be read is left out and named in `error`."""
        try:
            handles = self._handles()
        except pynvml.NVMLError as error:
            return GpuInventory(error=self._why_none(error))
        gpus, errors = [], []
        for index, handle in handles:
            try:
                gpus.append(self._describe(index, handle))
            except pynvml.NVMLError as error:
                errors.append(f"GPU {index}: {error}")
        return GpuInventory(tuple(gpus), "; ".join(errors))

    def load(self) -> list[membership_pb2.GpuLoad]:
        """How busy each GPU is. What a GPU does not tell is 0; a lost one is left out."""
        try:
            handles = self._handles()
        except pynvml.NVMLError:
            return []
        loads = []
        for index, handle in handles:
            if not isinstance(handle, pynvml.NVMLError):
                loads.append(self._measure(index, handle))
        return loads

    def by_process(self) -> dict[int, int]:
        """GPU memory in bytes by process id; without the processes and the GPUs that the driver does not tell of."""
        try:
            handles = [handle for _, handle in self._handles() if not isinstance(handle, pynvml.NVMLError)]
        except pynvml.NVMLError:
            return {}
        found: dict[int, int] = {}
        for handle in handles:
            for process in self._processes(handle):
                found[process.pid] = found.get(process.pid, 0) + (process.usedGpuMemory or 0)
        return found

    def _processes(self, handle: Any) -> Any:
        try:
            return self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError:
            return []

    def memory_used(self, index: int) -> int:
        """Bytes of a GPU's memory that are in use, by anybody; 0 when it does not tell."""
        handle = self._handle(index)
        return self._ask(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle).used) if handle is not None else 0

    def _handle(self, index: int) -> Any:
        """None when there is no such GPU that can be read."""
        try:
            handle = dict(self._handles()).get(index)
        except pynvml.NVMLError:
            return None
        return None if isinstance(handle, pynvml.NVMLError) else handle

    def _handles(self) -> list[tuple[int, Any]]:
        """Index and handle of each GPU, the error in place of the handle where there is none."""
        if not self._connected:
            self._nvml.nvmlInit()
            self._connected = True
        found = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                found.append((index, self._nvml.nvmlDeviceGetHandleByIndex(index)))
            except pynvml.NVMLError as error:
                found.append((index, error))
        return found

    def _describe(self, index: int, handle: Any) -> membership_pb2.Gpu:
        if isinstance(handle, pynvml.NVMLError):
            raise handle
        return membership_pb2.Gpu(
            index=index,
            uuid=_text(self._nvml.nvmlDeviceGetUUID(handle)),
            name=_text(self._nvml.nvmlDeviceGetName(handle)),
            memory_bytes=self._nvml.nvmlDeviceGetMemoryInfo(handle).total,
        )

    def _measure(self, index: int, handle: Any) -> membership_pb2.GpuLoad:
        ecc = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        busy = self._ask(lambda: self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        heat = self._ask(lambda: self._nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        return membership_pb2.GpuLoad(
            index=index,
            utilization=busy / 100,
            memory_used_bytes=self._ask(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle).used),
            temperature_celsius=heat,
            ecc_uncorrected_errors=self._ask(lambda: self._nvml.nvmlDeviceGetTotalEccErrors(handle, *ecc)),
        )

    def _ask(self, question: Callable[[], int]) -> int:
        try:
            return question()
        except pynvml.NVMLError:
            return 0  # not supported by this GPU or in its present partitioning

    def _why_none(self, error: pynvml.NVMLError) -> str:
        missing = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_NotFound)
        if isinstance(error, missing) and not self._driver_present():
            return ""
        return f"NVML: {error}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

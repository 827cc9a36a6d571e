from __future__ import annotations

import asyncio
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshkit.process import ProcessId
from node_agent.gpus import GpuReader
from node_agent.measure import MIB, Footprint, Measured, Meter, resident, taken, tolerated
from node_agent.runtimes import installed_runtimes


class Driver:
    """A GPU whose memory the test says; `told` is what it knows of processes."""

    def __init__(self, told: dict[int, int] | None = None) -> None:
        self.used = 0
        self.told = told or {}

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=1 << 40, used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, _: int) -> Any:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.told.items()]


def meter(driver: Driver) -> Meter:
    return Meter(GpuReader(driver))  # type: ignore[arg-type]


def test_what_triton_grew_by_counts_only_when_nothing_else_moved() -> None:
    before, after = Footprint(100, 1000), Footprint(130, 1400)
    own = Footprint(50)
    assert taken(before, after, own, alone=True, in_processes=True) == Measured(80, 400, 30)
    assert taken(before, after, own, alone=False, in_processes=True) == Measured(50, 0, 0)
    assert taken(before, after, Footprint(), alone=True, in_processes=False) == Measured(30, 400, 30)
    assert taken(before, after, Footprint(), alone=False, in_processes=False) == Measured()
    assert taken(before, after, Footprint(50, 300), alone=False, in_processes=True).gpu_memory_bytes == 300


def test_resident_memory_is_shared_fairly(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").write_text("5590-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss:  4 kB\n")
    assert resident([7], tmp_path) == 4096
    assert resident([os.getpid()]) > MIB
    assert resident([2**22 + 1]) == 0


async def test_a_load_is_measured_with_its_processes_and_its_gpu() -> None:
    me = ProcessId.of(os.getpid())
    driver = Driver()
    measuring = meter(driver)
    async with measuring.loading(os.getpid(), 0) as load:
        driver.used = 500 * MIB
        load.loaded()
        found = await load.measure([me])
    assert found.gpu_memory_bytes == 500 * MIB, "of the whole GPU, as the driver does not tell of processes"
    assert found.memory_bytes > MIB
    driver.told = {os.getpid(): 300 * MIB}
    async with measuring.loading(os.getpid(), 0) as load, measuring.freeing():
        assert (await load.measure([me])).gpu_memory_bytes == 300 * MIB
        assert (await load.measure([])).memory_bytes == 0, "something else moved"
    async with measuring.loading(0, None) as load:
        assert (await load.measure([])).memory_bytes == 0, "a Triton of another machine"


async def test_the_next_load_waits_until_memory_is_back() -> None:
    driver = Driver()
    measuring, took = meter(driver), Measured(gpu_memory_bytes=1000 * MIB)
    driver.used = 1000 * MIB
    async with measuring.freeing():
        before = measuring.footprint([], 0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await measuring.settled(60)
        await measuring.settled(0.01)
        assert await measuring.returned(1, 0, before, took, 0.0) == "1000 of 1000 MiB of GPU memory"
        driver.used = tolerated(1000 * MIB)
        assert await measuring.returned(1, 0, before, took, 60) == ""
        driver.used = 1000 * MIB
        async with measuring.freeing():
            assert await measuring.returned(1, 0, before, took, 60) == "", "nobody can tell whose it is"
    await measuring.settled(60)


def test_runtimes_are_those_whose_library_is_there() -> None:
    def version_of(package: str) -> str:
        if package != "onnxruntime-gpu":
            raise PackageNotFoundError
        return "1.2.3"

    found = installed_runtimes(version_of)
    assert found == {"python": found["python"], "onnx": "1.2.3"}
    assert "embed" in installed_runtimes()

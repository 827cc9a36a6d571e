"""For how long a process has been stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from node_agent.training.limits import Halt
from tests.processes import eventually

_COUNTS = "while True:\n    pass"


@pytest.fixture
def busy() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", _COUNTS]) as child:
        yield psutil.Process(child.pid)
        child.kill()


async def stop(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)
    await eventually(lambda: process.status() == psutil.STATUS_STOPPED)


async def test_it_lasts_from_the_first_look_that_found_it_stopped(busy: psutil.Process) -> None:
    halt = Halt()
    assert (halt.lasts_s(busy, 1.0), halt.seen) == (0.0, False)
    await stop(busy)
    assert (halt.lasts_s(busy, 2.0), halt.seen) == (0.0, True)
    assert halt.lasts_s(busy, 7.5) == 5.5


async def test_one_that_went_on_between_two_looks_begins_anew(busy: psutil.Process) -> None:
    halt = Halt()
    await stop(busy)
    assert halt.lasts_s(busy, 2.0) == 0.0
    used = busy.cpu_times().user
    busy.send_signal(signal.SIGCONT)
    await eventually(lambda: busy.cpu_times().user > used + 0.05)
    await stop(busy)
    assert halt.lasts_s(busy, 8.0) == 0.0
    assert halt.lasts_s(busy, 9.0) == 1.0


async def test_one_that_is_gone_is_not_stopped(busy: psutil.Process) -> None:
    halt = Halt()
    await stop(busy)
    assert halt.lasts_s(busy, 2.0) == 0.0
    busy.kill()
    busy.wait()
    assert (halt.lasts_s(busy, 9.0), halt.seen) == (0.0, False)

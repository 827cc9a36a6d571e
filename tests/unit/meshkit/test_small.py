"""The small parts of meshkit: back-off, processes, systemd, shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.backoff import Backoff
from meshkit.process import ProcessId, end_group
from meshkit.sdnotify import sd_notify, watchdog_interval_s
from meshkit.shutdown import Shutdown


@given(st.integers(0, 200))
def test_back_off_grows_to_its_ceiling_and_is_forgotten(failures: int) -> None:
    backoff = Backoff(first_s=0.1, most_s=5.0, uniform=lambda low, high: high)
    for _ in range(failures):
        backoff.next_delay()
    assert backoff.next_delay() == pytest.approx(min(5.0, 0.1 * 2.0**failures))
    backoff.reset()
    assert backoff.next_delay() == pytest.approx(0.1)


def test_a_pid_with_another_start_is_another_process() -> None:
    me = ProcessId.of(os.getpid())
    assert me.alive()
    stranger = ProcessId(me.pid, me.started - 1000)
    assert not stranger.alive()
    assert end_group(stranger) is False, "nothing is signalled"


def test_a_group_ends_with_its_leader_also_when_it_will_not() -> None:
    ignores = (
        "import signal,subprocess,sys,time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", ignores], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    assert end_group(ProcessId.of(child.pid), grace_s=0.1) is True
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()


def test_systemd_is_told_only_when_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert sd_notify("READY=1") is False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sd_notify("READY=1") is True
        assert listener.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert sd_notify("READY=1") is False
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    assert watchdog_interval_s() == 10.0
    monkeypatch.delenv("WATCHDOG_USEC")
    assert watchdog_interval_s() is None


async def test_the_first_signal_asks_to_go() -> None:
    shutdown = Shutdown.install()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(shutdown.requested.wait(), 5)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)

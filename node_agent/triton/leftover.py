"""Ends what an earlier agent of a data directory left and nobody can use: Triton, its stubs, its shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from meshkit.process import ProcessId
from node_agent.triton.launch import memory_prefix
from node_agent.triton.record import read_record, remove_record

_DEATH_S = 10.0


def end_leftovers(data_dir: Path) -> list[int]:
    """Kills what an earlier agent of this directory left: Triton, its stubs, its shared memory. Returns Tritons' pids.

    Blocks for some milliseconds. To be called under the directory's lock, while no Triton of its own runs.
    """
    found = list({process.pid: process for process in _recorded(data_dir) + _running(data_dir)}.values())
    for process in found:
        kill_group(process)
    deadline = time.monotonic() + _DEATH_S
    while any(process.alive() for process in found) and time.monotonic() < deadline:
        time.sleep(0.01)  # its ports are free when it is dead, not when it is told to die
    remove_record(data_dir)
    _release_memory(data_dir)
    return [process.pid for process in found]


def kill_group(leader: ProcessId) -> None:
    """SIGKILL to all processes of the group that `leader` leads or, if it is gone, led.

    A pid is not given to a new process while a group of that number exists. So when the pid has a process that started
    at another time, the old group is gone; when it has none, the group of that number can only be the old one.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        if not leader.started_as(ProcessId.of(leader.pid)):
            return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


def _recorded(data_dir: Path) -> list[ProcessId]:
    """None when the record is missing or garbage: `_running` finds a Triton that runs."""
    record = read_record(data_dir)
    return [record.process] if record is not None else []


def _running(data_dir: Path) -> list[ProcessId]:
    """Tritons that serve this directory's repository: one may have been started just before its agent was killed."""
    argument = f"--model-repository={data_dir / 'repository'}"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if argument in (process.info["cmdline"] or []):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(ProcessId.of(process.pid))
    return found


def _release_memory(data_dir: Path) -> None:
    for region in Path("/dev/shm").glob(f"{memory_prefix(data_dir)}*"):  # noqa: S108  # POSIX shared memory, no temporary file
        region.unlink(missing_ok=True)

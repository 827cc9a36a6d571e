"""Finds and ends processes of tasks that an earlier agent started and did not write down."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

from meshkit.process import ProcessId, end_group
from node_agent.training.folder import TRAINING


def end_workers(data_dir: Path, known: Collection[ProcessId] = ()) -> list[int]:
    """Ends the processes of this directory's tasks that are not among `known`; gives their pids. Blocks.

    One may have been started just before its agent was killed, and nobody has written down which. Workers that were
    forked have the command line of what they were forked from; that may fork one more while this looks.
    """
    ended: list[int] = []
    while found := _strays(str((data_dir / TRAINING).resolve()), known):
        for process in found:
            _end_stray(process)
            ended.append(process.pid)
    return ended


def _strays(root: str, known: Collection[ProcessId]) -> list[ProcessId]:
    led = {each.pid for each in known if each.alive()}  # what they have forked has their command line too
    strays = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if not (len(command) > 4 and command[2] == "-m" and command[-1].startswith(f"{root}/")):
            continue
        try:
            found = ProcessId.of(process.pid)
        except psutil.NoSuchProcess:
            continue
        if found.alive() and _group(found.pid) not in led:
            strays.append(found)
    return strays


def _end_stray(process: ProcessId) -> None:
    """Ends a process, with its group if it leads one: a worker's own forks do not, and may be all that is left."""
    if _group(process.pid) == process.pid:
        end_group(process, grace_s=2.0)
    elif process.alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        while process.alive():
            time.sleep(0.01)


def _group(pid: int) -> int:
    """The group of a process; 0 when it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0

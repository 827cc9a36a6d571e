"""What is read off the running servers: etcd's own counters, and CPU time and memory of processes."""

from __future__ import annotations

import asyncio
import http.client
import os
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from meshkit.errors import UnavailableError

_TIMEOUT_S = 5.0
_REVISION = "etcd_debugging_mvcc_current_revision"
_PUTS = "etcd_mvcc_put_total"
_DELETES = "etcd_mvcc_delete_total"
_PROPOSALS = "etcd_server_proposals_committed_total"


@dataclass(frozen=True)
class EtcdCounters:
    """etcd's counters since it started."""

    revision: int
    """Rises with every transaction that writes."""
    puts: int
    deletes: int
    proposals: int
    """What went through consensus: writes, and leases granted or revoked (not renewed)."""

    @property
    def writes(self) -> int:
        """Keys written or deleted."""
        return self.puts + self.deletes


@dataclass(frozen=True)
class Usage:
    """What processes have used so far, by name."""

    cpu_s: Mapping[str, float]
    """User and system time in seconds; that of the whole machine is called machine."""
    resident_bytes: Mapping[str, int]


def parse_counters(text: str) -> EtcdCounters:
    """The counters in etcd's /metrics page (Prometheus text format). Raises UnavailableError when one is missing."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in (_REVISION, _PUTS, _DELETES, _PROPOSALS):
            found[name] = float(value)
    missing = {_REVISION, _PUTS, _DELETES, _PROPOSALS} - found.keys()
    if missing:
        raise UnavailableError(
            f"etcd's metrics lack {', '.join(sorted(missing))}", hint="it needs etcd 3.4 or newer: etcd --version"
        )
    return EtcdCounters(int(found[_REVISION]), int(found[_PUTS]), int(found[_DELETES]), int(found[_PROPOSALS]))


async def read_counters(address: str) -> EtcdCounters:
    """A member's counters now. Raises UnavailableError when it does not answer."""
    return parse_counters(await asyncio.to_thread(_get, address, "/metrics"))


async def etcd_healthy(address: str) -> bool:
    """Whether a member answers and has a leader."""
    try:
        return '"health":"true"' in (await asyncio.to_thread(_get, address, "/health")).replace(" ", "")
    except UnavailableError:
        return False


def usage(pids: Mapping[str, int]) -> Usage:
    """What the processes have used, and this one, which is called simulator. Raises UnavailableError when one ended."""
    processes = {**pids, "simulator": os.getpid()}
    try:
        seen = {name: psutil.Process(pid) for name, pid in processes.items()}
        whole = psutil.cpu_times()
        busy = sum(whole) - whole.idle - getattr(whole, "iowait", 0.0)
        return Usage(
            {"machine": busy, **{name: sum(process.cpu_times()[:2]) for name, process in seen.items()}},
            {name: process.memory_info().rss for name, process in seen.items()},
        )
    except psutil.NoSuchProcess as error:
        raise UnavailableError(f"process {error.pid} of the simulation has ended") from None


def _get(address: str, path: str) -> str:
    """The body of a GET; no proxy is ever asked."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"etcd at {address} does not answer: {error}") from None
    finally:
        connection.close()

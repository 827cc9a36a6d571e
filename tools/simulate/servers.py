"""The real processes under a simulation: etcd and coordinators in a temporary directory, all ended with the block."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from meshkit.errors import ExhaustedError, UnavailableError
from meshkit.process import ProcessId, end_group
from tools.local.etcd import etcd_binary
from tools.local.keeper import child_environment, describe_exit, start_error
from tools.local.layout import LAST_BASE, to_toml
from tools.local.ports import is_free
from tools.simulate.plan import Plan

_FIRST_PORT = 20_000
_BROKE = re.compile(r"panic: |fatal error: ")  # Go says first what broke, Python last
_LINES = 20
_END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Becomes the program in its arguments, which the kernel kills when this process ends. A function run between fork and
exec would do the same, but gRPC's threads do not live through a fork."""


@dataclass(frozen=True)
class Place:
    """Where a simulation's servers are: addresses (host:port) and files."""

    root: Path
    etcd: tuple[str, ...]
    """Client addresses of the members."""
    etcd_peers: tuple[str, ...]
    coordinators: tuple[str, ...]

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.root / f"{name}.log"


@dataclass
class Servers:
    """What runs. The processes are children of this one."""

    place: Place
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def pids(self, kind: str) -> dict[str, int]:
        """Process ids by name, of those whose name begins so."""
        return {name: child.pid for name, child in self._children.items() if name.startswith(kind)}

    def check(self) -> None:
        """Raises UnavailableError when one of them has ended."""
        for name, child in self._children.items():
            if (status := child.poll()) is not None:
                raise _ended(name, describe_exit(status), self.place.log(name))

    def start(self, name: str, argv: list[str]) -> None:
        """Starts one in a group of its own, which the kernel ends should this process die without a word."""
        with self.place.log(name).open("ab") as output:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _END_WITH_PARENT, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self.place.root,
                env=child_environment(os.environ),
            )

    def stop(self) -> None:
        """Ends all, the coordinators first and all of a kind at once; waits until they are gone."""
        for kind in ("coordinator", "etcd"):
            chosen = [child for name, child in self._children.items() if name.startswith(kind)]
            with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
                list(pool.map(_end, chosen))


@contextlib.contextmanager
def servers(plan: Plan, root: Path) -> Iterator[Servers]:
    """Starts etcd and the coordinators of a plan; they may not answer yet. Raises UnavailableError without an etcd."""
    place = _choose(plan, root)
    running = Servers(place)
    binary = etcd_binary()
    try:
        for index in range(plan.etcd):
            running.start(f"etcd-{index + 1}", etcd_argv(place, index, binary))
        for index in range(plan.coordinators):
            running.start(f"coordinator-{index + 1}", _coordinator_argv(place, index))
        yield running
    finally:
        running.stop()


def etcd_argv(place: Place, index: int, binary: str) -> list[str]:
    """The command line of one member, with the flags that `aimesh up` gives it."""
    client, peer = f"http://{place.etcd[index]}", f"http://{place.etcd_peers[index]}"
    cluster = ",".join(f"etcd-{number + 1}=http://{address}" for number, address in enumerate(place.etcd_peers))
    return [
        binary,
        f"--name=etcd-{index + 1}",
        f"--data-dir={place.root / f'etcd-{index + 1}'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={cluster}",
        f"--quota-backend-bytes={2 << 30}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--log-level=warn",
    ]


def _coordinator_argv(place: Place, index: int) -> list[str]:
    """Writes the configuration of one coordinator, all but addresses left at its default, and gives its command."""
    name = f"coordinator-{index + 1}"
    host, _, port = place.coordinators[index].rpartition(":")
    table = {
        "id": name,
        "host": host,
        "port": int(port),
        "data_dir": str(place.root / name),
        "etcd": {"endpoints": list(place.etcd)},
    }
    config = place.root / f"{name}.toml"
    config.write_text(to_toml({"log": {"format": "json"}, "coordinator": table}))
    return [sys.executable, "-m", "tools.cli.main", "coordinator", "--config", str(config)]


def _choose(plan: Plan, root: Path) -> Place:
    """Free ports below the ephemeral ones, from a random one on. Raises ExhaustedError when there are too few."""
    first = random.randrange(_FIRST_PORT, LAST_BASE)  # noqa: S311  # two simulations should not collide
    free = (port for port in [*range(first, LAST_BASE), *range(_FIRST_PORT, first)] if is_free(port))
    wanted = 2 * plan.etcd + plan.coordinators
    found = [f"127.0.0.1:{port}" for port, _ in zip(free, range(wanted), strict=False)]
    if len(found) < wanted:
        raise ExhaustedError(f"no {wanted} free ports from {_FIRST_PORT} to {LAST_BASE}", hint="see: ss -ltn")
    etcd, peers = tuple(found[: plan.etcd]), tuple(found[plan.etcd : 2 * plan.etcd])
    return Place(root, etcd, peers, tuple(found[2 * plan.etcd :]))


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        end_group(ProcessId.of(child.pid), grace_s=10.0)
    child.wait()


def _ended(name: str, ending: str, log: Path) -> UnavailableError:
    """Why the simulation is given up: what the server said when it broke, or else last."""
    lines = log.read_text(errors="replace").splitlines()
    broke = [number for number, line in enumerate(lines) if _BROKE.match(line)]
    said = lines[broke[0] :][:_LINES] if broke else lines[-_LINES:]
    return UnavailableError(
        f"{name} ended with {ending}. It said:\n" + "\n".join(f"  | {line}" for line in said),
        hint="the figures of a run without all its servers would mean nothing; run it again",
        reason="SERVER_ENDED",
    )


def not_ready(place: Place, name: str, waited_s: float) -> UnavailableError:
    """Why a server that does not answer in time is given up, with the end of its log."""
    return start_error(name, f"no answer within {waited_s:g} s", place.log(name))

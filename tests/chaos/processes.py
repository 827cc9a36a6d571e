"""Real processes by name, each of which can be killed, stopped, continued and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshkit.failpoints import VARIABLE

START_TIMEOUT_S = 60.0
CLOCK = Path(__file__).parent / "clock"
"""Holds what gives a Python process a clock of its own."""


@dataclass
class Process:
    """A program that may be started many times. It says that it runs as to systemd, or by listening."""

    name: str
    argv: Sequence[str]
    folder: Path
    """Where its log, its socket for systemd's messages and its failpoints lie."""
    listens: tuple[str, int] | None = None
    """The address that shows that it runs; None when it says READY=1 itself."""
    environ: Mapping[str, str] = field(default_factory=dict)
    fake_clock: bool = False
    """A Python program whose wall clock can be moved."""
    child: subprocess.Popen[bytes] | None = None
    _notify: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Of the one that runs."""
        assert self.child is not None, f"{self.name} was never started"
        return self.child.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.child is not None and self.child.poll() is None

    @property
    def log(self) -> Path:
        """What it and its earlier lives wrote."""
        return self.folder / f"{self.name}.log"

    @property
    def _hits(self) -> Path:
        return self._armed.with_name(f"{self._armed.name}.hits")

    @property
    def _armed(self) -> Path:
        return self.folder / f"{self.name}.failpoints"

    def launch(self) -> None:
        """Starts it and does not wait."""
        assert not self.alive, f"{self.name} runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._listen_for_ready()
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("AIMESH_", "ETCD_", "GRPC_"))}
        told = {"NOTIFY_SOCKET": str(self._socket_path), VARIABLE: f"@{self._armed}"}
        with self.log.open("ab") as output:
            self.child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**keep, **told, **(self._clock_environ() if self.fake_clock else {}), **self.environ},
            )

    async def running(self) -> None:
        """Waits until it says that it runs. Fails when it ended or takes a minute."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._says_ready():
                assert self.alive, f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}"
                await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone, and after SIGKILL waits for its end."""
        if self.alive:
            os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.reap()

    def reap(self) -> int:
        """Waits for its end; gives its exit status."""
        assert self.child is not None
        return self.child.wait(timeout=START_TIMEOUT_S)

    def arm(self, failpoints: str) -> None:
        """Arms its failpoints, in this life and the next ones; empty for none."""
        self._armed.write_text(failpoints)
        if failpoints:
            self._hits.unlink(missing_ok=True)

    def set_clock(self, offset_s: int) -> None:
        """Moves its wall clock to so many seconds off."""
        assert self.fake_clock, f"{self.name} has the machine's clock"
        self._clock.write_text(f"{offset_s}")

    def hits(self) -> list[str]:
        """The failpoints that acted since they were armed last."""
        return self._hits.read_text().split() if self._hits.exists() else []

    def end(self) -> None:
        """Ends it for good, with what it started in its group."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.reap()
        if self._notify is not None:
            self._notify.close()

    @property
    def _socket_path(self) -> Path:
        return self.folder / f"{self.name}.notify"

    @property
    def _clock(self) -> Path:
        return self.folder / f"{self.name}.clock"

    def _clock_environ(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{CLOCK}:{os.environ.get('PYTHONPATH', '')}", "CHAOS_CLOCK": str(self._clock)}

    def _listen_for_ready(self) -> None:
        if self._notify is not None:
            self._notify.close()
        self._socket_path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._socket_path))
        self._notify.setblocking(False)

    def _says_ready(self) -> bool:
        if self.listens is not None:
            with socket.socket() as probe:
                probe.settimeout(0.5)
                return probe.connect_ex(self.listens) == 0
        assert self._notify is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                if b"READY=1" in self._notify.recv(4096):
                    return True
        return False

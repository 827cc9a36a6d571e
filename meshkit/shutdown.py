"""Two-phase shutdown: the first SIGTERM or SIGINT asks to drain, a second one stops at once."""

from __future__ import annotations

import asyncio
import os
import signal

import structlog

log = structlog.get_logger()


class Shutdown:
    """Says when to go. `requested` is set by the first signal; the second ends the process with status 130.

    Use it inside the running loop: `shutdown = Shutdown.install()`, then `await shutdown.requested.wait()`.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()

    @classmethod
    def install(cls) -> Shutdown:
        """Hooks SIGTERM and SIGINT of this process."""
        shutdown = cls()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, shutdown._on_signal, number)
        return shutdown

    def _on_signal(self, number: int) -> None:
        if self.requested.is_set():
            log.warning("shutdown.forced", signal=signal.Signals(number).name)
            os._exit(130)
        log.info("shutdown.requested", signal=signal.Signals(number).name)
        self.requested.set()

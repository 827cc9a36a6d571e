"""Tells systemd how the service is (sd_notify(3)); does nothing when no systemd listens."""

from __future__ import annotations

import os
import socket


def sd_notify(state: str) -> bool:
    """Sends `state` ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=...") to $NOTIFY_SOCKET.

    True when it was sent; False when there is no such socket, or nobody reads it: that must not stop a service.
    Source: sd_notify(3), "Standalone implementations".
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(address)
            sock.sendall(state.encode())
        except OSError:
            return False
    return True


def watchdog_interval_s() -> float | None:
    """Half of systemd's watchdog time in seconds, how often to send WATCHDOG=1; None when no watchdog is set."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2_000_000 if microseconds.isdigit() else None

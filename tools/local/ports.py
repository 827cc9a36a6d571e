"""Ports: which are taken, by whom, and a block that is free."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import psutil

from meshkit.errors import ExhaustedError
from tools.local.layout import BLOCK, FIRST_BASE, LAST_BASE, Layout


def is_free(port: int) -> bool:
    """Whether a program could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: ports whose last connection is only winding down count as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def taken(ports: Iterable[int]) -> list[int]:
    """Those of the ports that something has."""
    return [port for port in ports if not is_free(port)]


def claim(port: int) -> socket.socket:
    """Listens on the port, which keeps every other mesh from it until the socket is closed. Raises ExhaustedError."""
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("127.0.0.1", port))
        held.listen(1)
    except OSError:
        held.close()
        raise _taken_error(port, "the supervisor") from None
    return held


def claim_layout(layout: Layout) -> socket.socket:
    """Claims the layout's block. Raises ExhaustedError naming the first port that is taken and who has it."""
    held = claim(layout.claim_port)
    rest = {port: what for port, what in layout.ports().items() if port != layout.claim_port}
    for port in taken(rest):
        held.close()
        raise _taken_error(port, rest[port])
    return held


def claim_any(wanted: Layout) -> tuple[Layout, socket.socket]:
    """Claims the first free block for a mesh like the wanted one. Raises ExhaustedError when there is none."""
    for base in range(FIRST_BASE, LAST_BASE, BLOCK):
        layout = replace(wanted, port_base=base)
        try:
            return layout, claim_layout(layout)
        except ExhaustedError:
            continue
    raise ExhaustedError(
        f"no block of {BLOCK} free ports between {FIRST_BASE} and {LAST_BASE}",
        hint="see: ss -ltnp",
        reason="PORT_TAKEN",
    )


def owner(port: int) -> str:
    """The program that has the port, as 'name (pid)'; empty when it is not ours to see."""
    pids = [
        connection.pid
        for connection in psutil.net_connections("inet")
        if connection.pid and connection.laddr and connection.laddr.port == port
    ]
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            return f"{psutil.Process(pid).name()} (pid {pid})"
    return ""


def _taken_error(port: int, what: str) -> ExhaustedError:
    who = owner(port) or "another program"
    return ExhaustedError(
        f"port {port} (for {what}) is taken by {who}",
        hint="end that program, or choose other ports: aimesh up --port-base N",
        reason="PORT_TAKEN",
    )

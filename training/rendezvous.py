"""The store at which the workers of an attempt meet: in the process of rank 0, which listens before it waits for go."""

from __future__ import annotations

import socket
from typing import Any

from torch import distributed

from meshkit.errors import ExhaustedError


def open_store(host: str) -> tuple[Any, int]:
    """A store at this address, at a port of the system's choice, and that port. It listens until it is let go.

    Raises ExhaustedError when there is no such address here.
    """
    listening = _listen(host)
    port = int(listening.getsockname()[1])
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=True
    )
    return store, port


def _listen(host: str) -> socket.socket:
    """A socket at the address only: the store on its own would listen on every interface. Raises ExhaustedError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        raise ExhaustedError(
            f"no socket at {host!r}, where the workers are to meet: {error}",
            hint="the node's advertised address must be one of its own",
            reason="PORT_TAKEN",
        ) from error
    return listening

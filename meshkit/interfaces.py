"""This machine's network interfaces."""

from __future__ import annotations

import socket

import psutil


def interface_of(address: str) -> str:
    """The network interface that has an address, given as a name or number; empty when there is none.

    Looks a name up, which may block.
    """
    try:
        number = socket.getaddrinfo(address, None)[0][4][0] if address else ""
    except OSError:
        return ""
    for interface, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            loopback = one.address == "127.0.0.1" and str(number).startswith("127.")
            if one.address.partition("%")[0] == number or loopback:
                return interface
    return ""

"""Which interface an address is of."""

from __future__ import annotations

from meshkit.interfaces import interface_of


def test_the_interface_of_an_address() -> None:
    loopback = interface_of("127.0.0.1")
    assert loopback
    assert interface_of("127.0.0.7") == interface_of("localhost") == loopback
    assert interface_of("203.0.113.1") == interface_of("") == ""

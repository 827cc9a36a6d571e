from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from meshkit.errors import ExhaustedError
from tools.local.layout import BLOCK, FIRST_BASE, Layout
from tools.local.ports import claim, claim_any, claim_layout, is_free, owner, taken


def listening() -> socket.socket:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.listen(1)
    return held


def test_a_port_is_taken_while_somebody_listens() -> None:
    with listening() as held:
        port = held.getsockname()[1]
        assert not is_free(port)
        assert taken([port]) == [port]
        assert owner(port).endswith(f"(pid {os.getpid()})")
    assert is_free(port)
    assert owner(port) == ""


def test_a_taken_port_is_refused_with_its_number_and_its_owner() -> None:
    with listening() as held, pytest.raises(ExhaustedError) as caught:
        claim(held.getsockname()[1])
    assert f"port {held_port(caught.value)}" in caught.value.message
    assert f"pid {os.getpid()}" in caught.value.message
    assert "--port-base" in caught.value.hint
    assert caught.value.reason == "PORT_TAKEN"


def held_port(error: ExhaustedError) -> str:
    return error.message.split()[1]


def test_two_meshes_never_choose_the_same_block(tmp_path: Path) -> None:
    one, first = claim_any(Layout(tmp_path, FIRST_BASE, nodes=1))
    with first:
        two, second = claim_any(Layout(tmp_path, FIRST_BASE, nodes=1))
        second.close()
        with pytest.raises(ExhaustedError):
            claim_layout(one)
    assert one.port_base != two.port_base
    assert (one.port_base - FIRST_BASE) % BLOCK == 0

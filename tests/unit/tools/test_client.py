"""How the command line finds a coordinator that answers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
import pytest

from meshkit.credentials import ClientCredentials
from meshkit.errors import UnavailableError
from tests.processes import free_ports
from tools.certificates import create_authority
from tools.cli import client
from tools.cli.target import Mesh


def silent(stack: ExitStack) -> str:
    """The address of a server that accepts connections and says nothing, as a process that hangs does."""
    held = stack.enter_context(socket.socket())
    held.bind(("127.0.0.1", 0))
    held.listen(8)
    return f"127.0.0.1:{held.getsockname()[1]}"


def mesh(*coordinators: str) -> Mesh:
    return Mesh(coordinators, "", Path("/m"), None)


async def test_coordinators_that_are_dead_or_hang_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 120.0)  # whoever waits for the first is late
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with ExitStack() as stack:
            addresses = (silent(stack), f"127.0.0.1:{free_ports(1)[0]}", silent(stack), f"127.0.0.1:{port}")
            async with asyncio.timeout(60), client.connect(mesh(*addresses), "coordinator") as channel:
                assert channel.get_state() is grpc.ChannelConnectivity.READY
    finally:
        await server.stop(None)


async def test_when_none_answers_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.2)
    with ExitStack() as stack:
        addresses = (silent(stack), f"127.0.0.1:{free_ports(1)[0]}")
        with pytest.raises(UnavailableError, match=", ".join(addresses)) as caught:
            async with client.connect(mesh(*addresses), "coordinator"):
                pass
    assert "aimesh status" in caught.value.hint


async def test_a_key_alone_is_told_to_name_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.2)
    create_authority(tmp_path / "ca")
    only_key = ClientCredentials(ca=tmp_path / "ca" / "ca.pem", api_key="key")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(UnavailableError) as caught:
        async with client.connect(Mesh((address,), "", None, None, only_key), "coordinator"):
            pass
    assert "AIMESH_GATEWAY" in caught.value.hint

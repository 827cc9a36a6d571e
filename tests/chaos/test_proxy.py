"""The fault proxy itself."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from tests.chaos.proxy import ANYBODY, BLACK_HOLE, CUT, MUTE_SERVER, NO_FAULT, Proxy, slow
from tests.processes import eventually, free_ports


@asynccontextmanager
async def echo_through() -> AsyncIterator[tuple[Proxy, tuple[str, int], list[bytes]]]:
    """A proxy before a server that answers each line with itself; the door's address; what the server heard."""
    heard: list[bytes] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                heard.append(line)
                writer.write(line)
        except ConnectionResetError:
            heard.append(b"reset")
        finally:
            writer.close()

    (port,) = free_ports(1)
    server = await asyncio.start_server(echo, "127.0.1.1", port)
    proxy = Proxy(lambda: {os.getpid(): "me"})
    door = ("127.0.1.2", port)
    await proxy.open("echo", door, ("127.0.1.1", port))
    try:
        yield proxy, door, heard
    finally:
        await proxy.close()
        server.close()


@asynccontextmanager
async def connected(door: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*door)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], within_s: float = 5.0) -> bytes:
    reader, writer = streams
    writer.write(b"hello\n")
    async with asyncio.timeout(within_s):
        return await reader.readline()


async def test_bytes_pass_and_a_cut_resets() -> None:
    async with echo_through() as (proxy, door, heard), connected(door) as streams:
        assert await ask(streams) == b"hello\n"
        await proxy.set("somebody else", "echo", CUT)
        assert await ask(streams) == b"hello\n"
        await proxy.set("me", "echo", CUT)
        with pytest.raises(ConnectionResetError):
            await ask(streams)
        async with connected(door) as again:
            with pytest.raises(ConnectionResetError):
                await ask(again)
        assert b"reset" in heard
        await proxy.heal()
        async with connected(door) as healed:
            assert await ask(healed) == b"hello\n"


async def test_a_black_hole_keeps_what_was_sent_and_answers_no_new_connection() -> None:
    async with echo_through() as (proxy, door, heard), connected(door) as streams:
        assert await ask(streams) == b"hello\n"
        await proxy.set(ANYBODY, "echo", BLACK_HOLE)
        with pytest.raises(TimeoutError):
            await ask(streams, 0.2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), connected(door):
                pass
        assert len(heard) == 1
        await proxy.set(ANYBODY, "echo", NO_FAULT)
        async with asyncio.timeout(5):
            assert await streams[0].readline() == b"hello\n"
        async with connected(door) as healed:
            assert await ask(healed) == b"hello\n"


async def test_one_way_and_slow_links() -> None:
    async with echo_through() as (proxy, door, heard), connected(door) as streams:
        await proxy.set("me", "echo", MUTE_SERVER)
        with pytest.raises(TimeoutError):
            await ask(streams, 0.5)
        assert heard == [b"hello\n"]
        await proxy.set("me", "echo", slow(0.2))
        async with asyncio.timeout(5):
            assert await streams[0].readline() == b"hello\n"
        began = time.monotonic()
        assert await ask(streams) == b"hello\n"
        assert time.monotonic() - began >= 0.4


async def test_a_grpc_client_is_known_too() -> None:
    async with echo_through() as (proxy, door, _), grpc.aio.insecure_channel(f"{door[0]}:{door[1]}") as channel:
        await proxy.set("me", "echo", MUTE_SERVER)  # it would not take an echo for HTTP/2
        channel.get_state(try_to_connect=True)

        async def connected_here() -> bool:
            return await proxy.set("me", "echo", MUTE_SERVER) == 1

        await eventually(connected_here, what="the channel is seen as this process's")


_SAME_PORT = """
import signal, socket, sys
held = []
for _ in range(15):
    server = socket.create_server(("127.0.1.3", 0))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("127.0.0.1", int(sys.argv[1])))
    client.connect(server.getsockname())
    held += [server, client]
print("connected", flush=True)
signal.pause()
"""


async def test_another_connection_from_the_same_local_port_is_another_one() -> None:
    (port,) = free_ports(1)
    argv = [sys.executable, "-c", _SAME_PORT, str(port)]
    child = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"connected\n"
        async with echo_through() as (proxy, door, _):
            with socket.socket() as mine:
                mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                mine.bind(("127.0.0.1", port))
                mine.connect(door)

                async def known() -> bool:
                    return await proxy.set("me", "echo", NO_FAULT) == 1

                await eventually(known, what="the connection is seen as this process's")
    finally:
        child.kill()
        await child.wait()

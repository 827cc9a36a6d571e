"""A TCP fault proxy: doors in front of servers, through which every connection goes, and faults on links.

A link is (who connects, which door). Who connects is found by the socket's inode among the processes that the test
started, so that one door can be shut to one process and stay open to all others. Needs no privileges.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

CHUNK_BYTES = 64 * 1024
ANYBODY = "*"
_MAPPED = f"{'0' * 16}{struct.unpack('=I', bytes((0, 0, 255, 255)))[0]:08X}"
"""How /proc/net/tcp6 writes ::ffff:0:0/96, before the IPv4 address."""

Address = tuple[str, int]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a link."""

    cut: bool = False
    """Connections are reset, new ones at once."""
    to_server: bool = True
    """Bytes get through to the server; otherwise they are kept until the link is healed, as TCP would send them."""
    to_client: bool = True
    """The same for its answers."""
    delay_s: float = 0.0
    """Each way."""

    @property
    def silent(self) -> bool:
        """Whether the peers do not hear each other at all: then new connections get no answer either."""
        return not (self.to_server or self.to_client)


CUT = Fault(cut=True)
BLACK_HOLE = Fault(to_server=False, to_client=False)
MUTE_SERVER = Fault(to_client=False)
"""The server hears its clients, who do not hear it."""
NO_FAULT = Fault()


def slow(seconds: float) -> Fault:
    """A link that takes `seconds` longer each way."""
    return Fault(delay_s=seconds)


@dataclass(eq=False)
class _Connection:
    """One connection through a door."""

    client: str
    door: str
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """The doors of one mesh. All methods are for the loop that it was opened in."""

    def __init__(self, who: Callable[[], Mapping[int, str]]) -> None:
        """`who` gives the processes that may connect: their names by pid."""
        self._who = who
        self._faults: dict[tuple[str, str], Fault] = {}
        self._doors: dict[str, list[_Door]] = {}
        self._connections: set[_Connection] = set()
        self._changed = asyncio.Event()

    async def open(self, name: str, listen: Address, server: Address) -> None:
        """Opens a door at `listen` that leads to `server`; a name may have several."""
        door = _Door(listen, lambda reader, writer: self._serve(name, server, reader, writer))
        await door.open()
        self._doors.setdefault(name, []).append(door)

    async def set(self, client: str, door: str, fault: Fault) -> int:
        """Puts a fault on a link, in place of the one before; `client` may be ANYBODY. NO_FAULT heals it.

        Gives how many connections there are on the link.
        """
        self._faults.pop((client, door), None)
        if fault != NO_FAULT:
            self._faults[client, door] = fault
        count = sum(each.door == door and client in (ANYBODY, each.client) for each in self._connections)
        for connection in list(self._connections):
            if self._fault(connection).cut:
                _reset(connection)
        for each in self._doors[door]:
            await each.shut(silently=fault.silent and client == ANYBODY)
        self._changed.set()
        self._changed = asyncio.Event()
        return count

    async def heal(self) -> None:
        """Takes all faults away."""
        for client, door in list(self._faults):
            await self.set(client, door, NO_FAULT)

    async def close(self) -> None:
        """Ends every connection and closes every door."""
        for door in chain.from_iterable(self._doors.values()):
            await door.close()
        tasks = [task for connection in self._connections for task in connection.tasks]
        for connection in list(self._connections):
            _reset(connection)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fault(self, connection: _Connection) -> Fault:
        both = (connection.client, connection.door), (ANYBODY, connection.door)
        return next((self._faults[link] for link in both if link in self._faults), NO_FAULT)

    async def _serve(
        self, name: str, server: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ends = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        client = await asyncio.to_thread(connected_by, *ends, self._who())
        try:
            server_reader, server_writer = await asyncio.open_connection(*server)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(client, name, (writer, server_writer))
        self._connections.add(connection)
        connection.tasks = [
            asyncio.ensure_future(self._pump(connection, reader, server_writer, lambda fault: fault.to_server)),
            asyncio.ensure_future(self._pump(connection, server_reader, writer, lambda fault: fault.to_client)),
        ]
        if self._fault(connection).cut:
            _reset(connection)
        await asyncio.wait(connection.tasks)
        self._connections.discard(connection)
        _reset(connection)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lets_through: Callable[[Fault], bool],
    ) -> None:
        """One direction, until either side ends it; then the other direction ends too."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(connection, reader, late))
                group.create_task(self._deliver(connection, late, writer, lets_through))
        except* OSError:
            writer.transport.abort()  # a peer that hung up is what tests do all the time

    async def _read(
        self, connection: _Connection, reader: asyncio.StreamReader, late: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        clock = asyncio.get_running_loop().time
        while data := await reader.read(CHUNK_BYTES):
            await late.put((clock() + self._fault(connection).delay_s, data))
        await late.put((clock(), b""))

    async def _deliver(
        self,
        connection: _Connection,
        late: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        lets_through: Callable[[Fault], bool],
    ) -> None:
        """Sends on what was read, when it is due and the link lets it through; at last the end."""
        while True:
            due, data = await late.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            while not lets_through(self._fault(connection)):
                await self._changed.wait()
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()


class _Door:
    """A listening socket."""

    def __init__(
        self,
        listen: Address,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> None:
        self._listen = listen
        self._serve = serve
        self._open: asyncio.Server | None = None
        self._full: list[socket.socket] = []

    async def open(self) -> None:
        """Takes connections."""
        self._open = await asyncio.start_server(self._serve, sock=_bound(self._listen), backlog=100)

    async def close(self) -> None:
        """Listens no more; connections that stand stay."""
        if self._open is not None:
            self._open.close()
        for sock in self._full:
            sock.close()
        self._open, self._full = None, []

    async def shut(self, *, silently: bool) -> None:
        """Whether attempts to connect get no answer at all: the kernel drops them while a queue of one is full."""
        if silently == bool(self._full):
            return
        await self.close()
        if not silently:
            await self.open()
            return
        full = _bound(self._listen)
        full.listen(0)
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(self._listen)
        self._full = [full, filler]


def connected_by(peer: Address, door: Address, processes: Mapping[int, str]) -> str:
    """The name of the process that connected from `peer` to `door`; empty when it is none of these."""
    inode = _inode_of(peer, door)
    for pid, name in processes.items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if inode and str(descriptor.readlink()) == f"socket:[{inode}]":
                        return name
    return ""


def _inode_of(local: Address, remote: Address) -> str:
    """The inode of the TCP socket with these two IPv4 ends; empty when there is none.

    Both, as the kernel gives one local port to connections that go to different places. gRPC connects to IPv4 addresses
    from IPv6 sockets, which the kernel lists elsewhere.
    """
    for table, prefix in (("tcp", ""), ("tcp6", _MAPPED)):
        ends = [prefix + _as_listed(local), prefix + _as_listed(remote)]
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1:3] == ends and fields[9] != "0":
                return fields[9]
    return ""


def _as_listed(address: Address) -> str:
    """An IPv4 address and port as /proc/net/tcp writes them."""
    host, port = address
    return f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}"


def _bound(address: Address) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    return sock


def _reset(connection: _Connection) -> None:
    """RST to both sides."""
    for writer in connection.writers:
        sock = writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    for task in connection.tasks:
        task.cancel()

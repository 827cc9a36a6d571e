"""Whoever holds another role's certificate for a coordinator's address is not taken for a coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aimesh.membership.v1 import membership_pb2
from meshkit.credentials import ClientCredentials
from meshkit.errors import UnavailableError
from meshkit.tls import TlsSettings
from node_agent.session import Session
from tests.certificates import TestAuthority
from tests.mesh.node_agent.support import Coordinator
from tests.processes import eventually
from tools.cli.client import connect
from tools.cli.target import Mesh


@asynccontextmanager
async def serving(tls: TlsSettings) -> AsyncIterator[Coordinator]:
    """Speaks as a coordinator does, with any certificate."""
    server = Coordinator()
    await server.start(tls=tls)
    try:
        yield server
    finally:
        await server.stop()


async def test_an_agent_joins_coordinators_only(authority: TestAuthority) -> None:
    """The impostor, whose certificate is good for its address, is asked first, and passed over."""
    hello, report, load = membership_pb2.Hello(node_id="n1"), membership_pb2.ModelReport(), membership_pb2.Load()
    impostors, coordinators = authority.issue("node", "n2"), authority.issue("coordinator", "c1")
    async with serving(impostors) as impostor, serving(coordinators) as real:
        addresses, own = (impostor.address, real.address), authority.issue("node", "n1")
        session = Session(addresses, hello, lambda: report, lambda: load, lambda _: None, own)
        running = asyncio.create_task(session.run())
        try:
            await eventually(session.welcomed.is_set, what="a welcome")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert (len(impostor.hellos), len(real.hellos)) == (0, 1)


async def test_the_command_line_calls_coordinators_only(authority: TestAuthority) -> None:
    admin = authority.issue("admin", "root")
    shown = ClientCredentials(admin.ca, admin.cert, admin.key)
    async with serving(authority.issue("node", "n2")) as impostor:
        with pytest.raises(UnavailableError, match="no coordinator answers"):
            async with connect(Mesh((impostor.address,), "", None, None, shown), "coordinator"):
                pass
        async with connect(Mesh((), impostor.address, None, None, shown), "gateway"):
            pass  # a gateway is known by its address alone
    async with (
        serving(authority.issue("coordinator", "c1")) as real,
        connect(Mesh((real.address,), "", None, None, shown), "coordinator"),
    ):
        pass
